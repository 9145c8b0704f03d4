"""The drawn training set on disk: pictures by index, and their scenes and captions again."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import numpy as np

from deploy.demo_model.preset import SEED
from deploy.demo_model.scenes import Scene, draw, sample_scene
from deploy.demo_model.state import save_atomically

_CHUNK = 500


def scene_and_picture(index: int, size: int, *, seed: int = SEED) -> tuple[Scene, np.ndarray]:
    """Scene number `index` of the set `seed`, and its picture, uint8 [size, size, 3]."""
    rng = np.random.default_rng([seed, 0, index])
    scene = sample_scene(rng)
    return scene, np.asarray(draw(scene, rng, size))


def scene_at(index: int, *, seed: int = SEED) -> Scene:
    """Scene number `index` of the set `seed`, without painting it."""
    return sample_scene(np.random.default_rng([seed, 0, index]))


def pictures(count: int, size: int, work: Path) -> np.ndarray:
    """Pictures 0 to `count` as uint8 [count, size, size, 3], drawn once and kept in `work`."""
    target = work / f"pictures-{count}-{size}.npy"
    if not target.exists():
        save_atomically(lambda path: _draw_all(path, count, size), target)
    stored: np.ndarray = np.load(target, mmap_mode="r")
    return stored


def _draw_all(path: Path, count: int, size: int) -> None:
    canvas = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3)
    )
    chunks = [(start, min(start + _CHUNK, count), size) for start in range(0, count, _CHUNK)]
    with get_context("spawn").Pool(2) as pool:
        for (start, stop, _), drawn in zip(chunks, pool.imap(_draw_chunk, chunks), strict=True):
            canvas[start:stop] = drawn
            if stop % (20 * _CHUNK) == 0:
                print(f"draw {stop / count:6.1%}", flush=True)
    canvas.flush()


def _draw_chunk(bounds: tuple[int, int, int]) -> np.ndarray:
    start, stop, size = bounds
    return np.stack([scene_and_picture(index, size)[1] for index in range(start, stop)])

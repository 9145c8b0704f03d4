"""The training set on disk: images drawn by index, and their latents and token ids, so that a step
of the UNet costs the UNet."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTokenizer

from deploy.demo_model.captions import caption
from deploy.demo_model.preset import SEED, TOKENS
from deploy.demo_model.scenes import Scene, draw, sample_scene
from deploy.demo_model.state import save_atomically
from deploy.demo_model.text import tokens
from deploy.demo_model.vae import to_pixels

CAPTIONS_PER_SCENE = 4
_CHUNK = 500
"""Images drawn at a time."""
_BATCH = 100
"""Images encoded at a time."""


def scene_and_image(index: int, size: int, *, seed: int = SEED) -> tuple[Scene, np.ndarray]:
    """Scene number `index` of the set `seed`, and its image, uint8 [size, size, 3]."""
    rng = np.random.default_rng([seed, 0, index])
    scene = sample_scene(rng)
    return scene, np.asarray(draw(scene, rng, size))


def scene_at(index: int, *, seed: int = SEED) -> Scene:
    """Scene number `index` of the set `seed`, without painting it."""
    return sample_scene(np.random.default_rng([seed, 0, index]))


def images(count: int, size: int, work: Path) -> np.ndarray:
    """Images 0 to `count` as uint8 [count, size, size, 3], drawn once and kept in `work`."""
    target = work / f"images-{count}-{size}.npy"
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
    return np.stack([scene_and_image(index, size)[1] for index in range(start, stop)])


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What the UNet learns from."""

    latents: np.ndarray
    """float16 [scenes, channels, height / 8, width / 8], as the VAE made them."""
    token_ids: np.ndarray
    """int16 [scenes, CAPTIONS_PER_SCENE, TOKENS]."""
    scaling_factor: float
    """What latents are multiplied by to have deviation 1; the VAE's `scaling_factor`."""


def training_set(
    images: np.ndarray,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    work: Path,
    device: torch.device,
) -> TrainingSet:
    """Encodes images [n, size, size, 3] and their captions once and keeps them in `work`."""
    latents_file, tokens_file = work / "latents.npy", work / "tokens.npy"
    if not latents_file.exists():
        save_atomically(lambda path: _encode(path, images, vae, device), latents_file)
    if not tokens_file.exists():
        save_atomically(lambda path: _caption(path, len(images), tokenizer), tokens_file)
    latents = np.load(latents_file)
    deviation = float(latents[:2_000].astype(np.float32).std())
    return TrainingSet(latents, np.load(tokens_file), round(1 / deviation, 5))


@torch.no_grad()
def _encode(path: Path, images: np.ndarray, vae: AutoencoderTiny, device: torch.device) -> None:
    rows = []
    for start in range(0, len(images), _BATCH):
        batch = to_pixels(images[start : start + _BATCH], device)
        with torch.autocast(device.type, torch.bfloat16):
            rows.append(vae.encode(batch).latents.to("cpu", torch.float16).contiguous().numpy())
        if start % (100 * _BATCH) == 0:
            print(f"encode {start / len(images):6.1%}", flush=True)
    with path.open("wb") as file:
        np.save(file, np.concatenate(rows))


def _caption(path: Path, count: int, tokenizer: CLIPTokenizer) -> None:
    ids = np.empty((count, CAPTIONS_PER_SCENE, TOKENS), dtype=np.int16)
    for index in range(count):
        rng = np.random.default_rng([SEED, 4, index])
        scene = scene_at(index)
        texts = [caption(scene, rng) for _ in range(CAPTIONS_PER_SCENE)]
        ids[index] = tokens(tokenizer, texts).numpy()
    with path.open("wb") as file:
        np.save(file, ids)

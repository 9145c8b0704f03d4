"""Embeddings of the benchmark's captions, computed once and kept: a million take half an hour.

The captions of one seed are the same in every run and a longer list begins with the shorter one, so
one growing file serves all sizes, and a run that was interrupted goes on where it stopped.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.processes import PROJECT
from worker.search.embedders import Embedder

KEPT_IN = PROJECT / ".darkroom" / "bench"
PORTION = 5_000
Vectors = np.ndarray[Any, np.dtype[np.float32]]


def embed_captions(
    embedder: Embedder, captions: Sequence[str], kept_in: Path = KEPT_IN
) -> Iterator[tuple[int, Vectors]]:
    """Unit vectors in portions: (place of the first, float32 [n, dimensions]).

    They are computed in bfloat16, three times as fast as float32 on a CPU that has it, and are
    float16 on disk; both move a cosine by less than 0.001.
    """
    import torch

    kept_in.mkdir(parents=True, exist_ok=True)
    path = kept_in / f"captions-{embedder.model_name}.f16"
    dimensions = len(embedder.embed(["a caption"])[0])
    row = dimensions * 2
    for start in range(0, len(captions), PORTION):
        portion = captions[start : start + PORTION]
        size = path.stat().st_size if path.exists() else 0
        if size < (start + len(portion)) * row:
            with torch.autocast("cpu", torch.bfloat16):
                vectors = np.asarray(embedder.embed(portion), np.float16)
            with path.open("r+b" if path.exists() else "w+b") as file:
                # At its place, not at the end: what a killed run wrote in part is written over.
                file.seek(start * row)
                file.write(vectors.tobytes())
        with path.open("rb") as file:
            file.seek(start * row)
            packed = file.read(len(portion) * row)
        yield start, np.frombuffer(packed, np.float16).reshape(-1, dimensions).astype(np.float32)

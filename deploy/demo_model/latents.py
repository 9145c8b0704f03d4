"""The encoded training set: latents and token ids on disk, so that a UNet step costs the UNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTokenizer

from deploy.demo_model.captions import caption
from deploy.demo_model.pictures import scene_at
from deploy.demo_model.preset import SEED, TOKENS
from deploy.demo_model.state import save_atomically
from deploy.demo_model.text import tokens
from deploy.demo_model.vae import to_pixels

CAPTIONS_PER_SCENE = 4
_BATCH = 100


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
    pictures: np.ndarray,
    vae: AutoencoderTiny,
    tokenizer: CLIPTokenizer,
    work: Path,
    device: torch.device,
) -> TrainingSet:
    """Encodes pictures [n, size, size, 3] and their captions once and keeps them in `work`."""
    latents_file, tokens_file = work / "latents.npy", work / "tokens.npy"
    if not latents_file.exists():
        save_atomically(lambda path: _encode(path, pictures, vae, device), latents_file)
    if not tokens_file.exists():
        save_atomically(lambda path: _caption(path, len(pictures), tokenizer), tokens_file)
    latents = np.load(latents_file)
    deviation = float(latents[:2_000].astype(np.float32).std())
    return TrainingSet(latents, np.load(tokens_file), round(1 / deviation, 5))


@torch.no_grad()
def _encode(path: Path, pictures: np.ndarray, vae: AutoencoderTiny, device: torch.device) -> None:
    rows = []
    for start in range(0, len(pictures), _BATCH):
        batch = to_pixels(pictures[start : start + _BATCH], device)
        with torch.autocast(device.type, torch.bfloat16):
            rows.append(vae.encode(batch).latents.to("cpu", torch.float16).contiguous().numpy())
        if start % (100 * _BATCH) == 0:
            print(f"encode {start / len(pictures):6.1%}", flush=True)
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

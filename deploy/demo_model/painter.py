"""Paints the evaluation's images with the checkpoint, in a process for each core."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
)
from torch import Tensor

STEPS = 20
GUIDANCE = 4.0
_PROCESSES = 2
_BATCH = 10


@dataclass(frozen=True, slots=True)
class _Order:
    """One batch of images; image i of it has the seed `first_seed` + i."""

    checkpoint: Path
    texts: list[str]
    first_seed: int
    guidance: float = GUIDANCE
    negative: str = ""
    starts: np.ndarray | None = None
    """For image to image: float32 [n, 3, size, size] in -1 to 1."""
    strength: float | None = None
    lora: Path | None = None
    controlnet: Path | None = None
    maps: np.ndarray | None = None
    """What the ControlNet sees: float32 [n, 3, size, size] in 0 to 1."""


class Painter:
    """The checkpoint under evaluation, in float32 on the CPU."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.vae: Any = _pipeline(checkpoint).vae
        self.size: int = _pipeline(checkpoint).unet.config.sample_size * 8
        self._pool = ProcessPoolExecutor(_PROCESSES, get_context("spawn"))

    def paint(
        self,
        texts: list[str],
        *,
        guidance: float = GUIDANCE,
        negative: str = "",
        lora: Path | None = None,
    ) -> Tensor:
        """Images [n, 3, size, size] in -1 to 1; image i has seed i."""
        orders = self._orders(texts, guidance=guidance, negative=negative, lora=lora)
        return self._deliver(orders)

    def repaint(self, texts: list[str], starts: Tensor, strength: float) -> Tensor:
        """Image to image from `starts` [n, 3, size, size] in -1 to 1."""
        return self._deliver(self._orders(texts, starts=starts, strength=strength))

    def trace(self, texts: list[str], maps: Tensor, controlnet: Path) -> Tensor:
        """Images for which a ControlNet sees maps [n, 3, size, size] in 0 to 1; image i has seed
        i."""
        return self._deliver(self._orders(texts, maps=maps, controlnet=controlnet))

    def seconds_for_one(self, text: str) -> float:
        """The best of five warm runs of one image, on all cores."""
        [order] = self._orders([text])
        _fill(order)
        runs = []
        for _ in range(5):
            began = time.perf_counter()
            _fill(order)
            runs.append(time.perf_counter() - began)
        return min(runs)

    def _orders(self, texts: list[str], **more: Any) -> list[_Order]:
        """Of tensors among `more`, each order gets its own part."""
        orders = []
        for at in range(0, len(texts), _BATCH):
            part = slice(at, at + _BATCH)
            own: dict[str, Any] = {
                name: value[part].numpy() if isinstance(value, Tensor) else value
                for name, value in more.items()
            }
            orders.append(_Order(self._checkpoint, texts[part], at, **own))
        return orders

    def _deliver(self, orders: list[_Order]) -> Tensor:
        images = []
        for done, painted in enumerate(self._pool.map(_fill_on_one_thread, orders), start=1):
            images.append(torch.from_numpy(painted))
            if done % 10 == 0:
                print(f"paint {done}/{len(orders)} batches", flush=True)
        return torch.cat(images)


@cache
def _pipeline(checkpoint: Path) -> Any:
    pipe = AutoPipelineForText2Image.from_pretrained(checkpoint, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fill_on_one_thread(order: _Order) -> np.ndarray:
    torch.set_num_threads(1)
    return _fill(order)


def _fill(order: _Order) -> np.ndarray:
    """The images of an order, float32 [n, 3, size, size] in -1 to 1."""
    pipe, start = _pipeline(order.checkpoint), dict[str, Any]()
    if order.starts is not None:
        pipe = AutoPipelineForImage2Image.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
        start = {"image": torch.from_numpy((order.starts + 1) / 2), "strength": order.strength}
    if order.controlnet is not None and order.maps is not None:
        net = ControlNetModel.from_pretrained(order.controlnet, use_safetensors=True)
        parts = {**pipe.components, "controlnet": net, "requires_safety_checker": False}
        pipe = StableDiffusionControlNetPipeline(**parts)
        start = {"image": torch.from_numpy(order.maps)}
        pipe.set_progress_bar_config(disable=True)
    if order.lora is not None:
        pipe.load_lora_weights(order.lora.parent, weight_name=order.lora.name)
    count = len(order.texts)
    pixels = pipe(
        order.texts,
        negative_prompt=[order.negative] * count,
        num_inference_steps=STEPS,
        guidance_scale=order.guidance,
        generator=[torch.Generator().manual_seed(order.first_seed + i) for i in range(count)],
        output_type="pt",
        **start,
    ).images
    if order.lora is not None:
        pipe.unload_lora_weights()
    images: np.ndarray = (pixels * 2 - 1).numpy()
    return images

"""Random crowds around observed images, turn by turn and without threads, so that they repeat.

An image joins, others join and leave and are canceled around it, at every turn by chance; some
have its size and some another, and it may be the one that has to pause.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from shared.core.schedulers import DIFFUSION_SCHEDULERS
from worker.engine.in_flight import InFlightRequest
from worker.engine.interface import Hires, ImageRequest, Lora, Mask, QueueClass, Upscaler
from worker.engine.notifier import Notifier
from worker.engine.row import Prediction
from worker.engine.ticks import TickRunner

NEWCOMER_TICKS = 12
"""Newcomers arrive for so many turns; a few images more and the observed one never gets a row."""

_HIRES = tuple(
    Hires(width=96, height=64, strength=0.6, steps=5, upscaler=upscaler)
    for upscaler in get_args(Upscaler)
)

_WORDS = ("a red fox", "two boats", "snow", "a lamp in the dark", "the sea at night, oil on canvas")


@dataclass(frozen=True)
class Generated:
    """An image and the latents it was decoded from."""

    latents: torch.Tensor
    pixels: NDArray[np.uint8]
    seen: Prediction | None
    """The last UNet call, if previews were asked for."""


def random_request(
    random: Random,
    schedulers: tuple[str, ...] = tuple(DIFFUSION_SCHEDULERS),
    from_images: bool = True,
    *,
    loras: Sequence[tuple[Lora, ...]] = ((),),
    inpainting: bool = False,
    fields: Sequence[Mapping[str, Any]] = (),
) -> ImageRequest:
    """Any kind of image that a toy model makes."""
    from_image = random.random() < 0.3 and from_images
    queue_class: QueueClass = random.choice(("interactive", "bulk"))
    made = ImageRequest(
        prompt=random.choice(_WORDS),
        negative_prompt=random.choice((None, "blurry")),
        seed=random.randrange(2**53),
        width=random.choice((64, 64, 64, 96)),
        height=64,
        steps=random.randint(3, 7),
        guidance_scale=random.choice((7.5, 7.5, 4.0, 1.0)),
        scheduler=random.choice(schedulers),
        strength=random.choice((0.5, 0.8, 1.0)) if from_image else None,
        init_image=_image(random.randrange(1000)) if from_image else None,
        queue_class=queue_class,
        previews=random.random() < 0.1,
        loras=random.choice(loras),
        hires=random.choice(_HIRES) if from_images and random.random() < 0.2 else None,
    )
    if fields:
        made = dataclasses.replace(made, **random.choice(fields))
    return repainted(made, random) if inpainting and random.random() < 0.5 else made


def repainted(request: ImageRequest, random: Random, padding: int | None = None) -> ImageRequest:
    """The same image as a part of another."""
    size = (request.width, request.height)
    mask = Image.new("L", size)
    left, top = random.randrange(30), random.randrange(30)
    ImageDraw.Draw(mask).ellipse((left, top, left + 30, top + 28), fill=255)
    return dataclasses.replace(
        request,
        init_image=_image(random.randrange(1000)).resize(size),
        strength=random.choice((0.6, 0.99, 1.0)),
        mask=Mask(mask.filter(ImageFilter.GaussianBlur(2)), padding, preserve=False),
        hires=None,
    )


def make_alone(backend: Any, request: ImageRequest) -> Generated:
    """The image with nobody else in the engine."""
    (generated,) = _make(backend, [(request, 0)], None)
    return generated


def make_among_others(
    backend: Any,
    request: ImageRequest,
    random: Random,
    schedulers: tuple[str, ...],
    from_images: bool = True,
    **crowd: Any,
) -> Generated:
    """The same image in a crowd; `crowd`: what its images may have besides, see
    `random_request`."""
    (generated,) = make_together(backend, [request], random, schedulers, from_images, **crowd)
    return generated


def make_together(
    backend: Any,
    requests: Sequence[ImageRequest],
    random: Random,
    schedulers: tuple[str, ...],
    from_images: bool = True,
    **crowd: Any,
) -> list[Generated]:
    """These images among others, and so among each other."""
    others: list[InFlightRequest[Any]] = []

    def stir(ticks: TickRunner[Any], turn: int) -> None:
        for _ in range(random.choice((0, 0, 1, 1, 2, 3)) if turn < NEWCOMER_TICKS else 0):
            newcomer = random_request(random, schedulers, from_images, **crowd)
            others.append(InFlightRequest(newcomer, None, _nothing))
            ticks.add(others[-1])
        if others and random.random() < 0.3:
            random.choice(others).cancel()

    classes: tuple[QueueClass, ...] = ("interactive", "bulk")
    arrivals = [
        (dataclasses.replace(request, queue_class=random.choice(classes)), random.randint(0, 3))
        for request in requests
    ]
    return _make(backend, arrivals, stir)


def _make(backend: Any, arrivals: Sequence[tuple[ImageRequest, int]], stir: Any) -> list[Generated]:
    """Make the images, each of which joins at its turn."""
    notifier = Notifier()
    ticks: TickRunner[Any] = TickRunner(backend, notifier)
    entries: list[InFlightRequest[Any]] = [
        InFlightRequest(request, None, _nothing) for request, _ in arrivals
    ]
    states: list[Any] = [None] * len(entries)
    try:
        for turn in range(2000):
            if stir is not None:
                stir(ticks, turn)
            for entry, (_, join_at) in zip(entries, arrivals, strict=True):
                if turn == join_at:
                    ticks.add(entry)
            states = [entry.state or state for entry, state in zip(entries, states, strict=True)]
            ticks.advance()
            if all(entry.future.done() for entry in entries):
                images = [entry.future.result() for entry in entries]
                for left in list(ticks.composer):
                    left.cancel()
                ticks.advance()
                return [
                    Generated(state.latents, image.pixels, state.seen)
                    for image, state in zip(images, states, strict=True)
                ]
    finally:
        notifier.close()
    raise AssertionError("The observed images never ended.")


def _image(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _nothing() -> None:
    """Nobody has to be woken."""

"""Random crowds around one observed image, turn by turn and without threads, so that they repeat.

An image joins, others join and leave and are canceled around it, at every turn by chance; some
have its size and some another, and it may be the one that has to pause.
"""

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.core.schedulers import SCHEDULERS
from worker.engine.flight import Flight
from worker.engine.interface import ImageRequest, Lane
from worker.engine.notifier import Notifier
from worker.engine.row import Prediction
from worker.engine.turns import Turns

CROWDED_TURNS = 12
"""Newcomers arrive for so many turns; a few images more and the observed one never gets a row."""

_WORDS = ("a red fox", "two boats", "snow", "a lamp in the dark", "the sea at night, oil on canvas")


@dataclass(frozen=True)
class Made:
    """An image and the latents it was decoded from."""

    latents: torch.Tensor
    pixels: NDArray[np.uint8]
    seen: Prediction | None
    """The last UNet call, if previews were asked for."""


def random_request(random: Random, schedulers: tuple[str, ...] = tuple(SCHEDULERS)) -> ImageRequest:
    """Any kind of image that a toy model makes."""
    from_image = random.random() < 0.3
    lane: Lane = random.choice(("interactive", "bulk"))
    return ImageRequest(
        prompt=random.choice(_WORDS),
        negative_prompt=random.choice((None, "blurry")),
        seed=random.randrange(2**53),
        width=random.choice((64, 64, 64, 96)),
        height=64,
        steps=random.randint(3, 7),
        guidance_scale=random.choice((7.5, 7.5, 4.0, 1.0)),
        scheduler=random.choice(schedulers),
        strength=random.choice((0.5, 0.8, 1.0)) if from_image else None,
        init_image=_picture(random.randrange(1000)) if from_image else None,
        lane=lane,
        previews=random.random() < 0.1,
    )


def make_alone(backend: Any, request: ImageRequest) -> Made:
    """The image with nobody else in the engine."""
    return _make(backend, request, None)


def make_in_crowd(
    backend: Any, request: ImageRequest, random: Random, schedulers: tuple[str, ...]
) -> Made:
    """The same image in a crowd."""
    crowd: list[Flight[Any]] = []

    def stir(turns: Turns[Any], turn: int) -> None:
        for _ in range(random.choice((0, 0, 1, 1, 2, 3)) if turn < CROWDED_TURNS else 0):
            crowd.append(Flight(random_request(random, schedulers), None, _nothing))
            turns.admit(crowd[-1])
        if crowd and random.random() < 0.3:
            random.choice(crowd).cancel()

    lane: Lane = random.choice(("interactive", "bulk"))
    return _make(backend, dataclasses.replace(request, lane=lane), stir, random.randint(0, 3))


def _make(backend: Any, request: ImageRequest, stir: Any, join_at: int = 0) -> Made:
    notifier = Notifier()
    try:
        turns: Turns[Any] = Turns(backend, notifier)
        flight: Flight[Any] = Flight(request, None, _nothing)
        state: Any = None
        for turn in range(2000):
            if stir is not None:
                stir(turns, turn)
            if turn == join_at:
                turns.admit(flight)
            state = flight.state or state
            turns.turn()
            if flight.future.done():
                made = Made(state.latents, flight.future.result().pixels, state.seen)
                for left in list(turns.admission):
                    left.cancel()
                turns.turn()
                return made
    finally:
        notifier.close()
    raise AssertionError("The observed image never ended.")


def _picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _nothing() -> None:
    """Nobody has to be woken."""

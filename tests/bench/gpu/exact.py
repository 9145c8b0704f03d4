"""(a) Every family and scheduler: one row against diffusers, then rows in crowds."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from random import Random

import numpy as np
import torch
from PIL import Image

from tests.bench.gpu.record import Item, Numbers
from tests.unit.engine.concurrency import Generated, make_alone, make_together
from tests.unit.engine.families import DIFFUSION_TOYS, TOYS, Toy
from tests.unit.engine.reference import Reference
from tests.unit.engine.toys import request, toy_backend, toy_folder
from worker.engine.batched_backend import BatchedBackend
from worker.engine.families import ALL
from worker.engine.interface import ImageRequest

_ROWS = 4
_SOME = ("ddim", "euler-ancestral", "dpmpp-2m")
"""Of the schedulers of diffusion, for all models but the first."""
_HALF = {family.name: family.half_precision for family in ALL}
_START = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 70, 3), dtype=np.uint8))


def families(device: str, crowds: int, *, one_scheduler: bool) -> Iterator[Item]:
    """One item for each toy; a row for each of its schedulers, of which the first has all."""
    first, *others = DIFFUSION_TOYS
    for toy in (first, *TOYS.values(), *others):
        few = len(toy.schedulers) <= len(_SOME) or toy is first
        schedulers = toy.schedulers[:1] if one_scheduler else toy.schedulers if few else _SOME
        seconds = 3 + 0.5 * len(schedulers)
        yield Item(f"a/{toy.name}", seconds, _measured(toy, schedulers, device, crowds))


def _measured(
    toy: Toy, schedulers: Sequence[str], device: str, crowds: int
) -> Callable[[], Iterator[tuple[str, Numbers]]]:
    def measure() -> Iterator[tuple[str, Numbers]]:
        dtype = _HALF[toy.family]
        requests = {
            scheduler: request(guidance_scale=toy.guidance, scheduler=scheduler, seed=seed)
            for seed, scheduler in enumerate(schedulers)
        }
        backend = toy_backend(toy.name, 1, on=device, dtype=dtype, **toy.spec)
        diffusers = Reference(toy_folder(toy.name), getattr(torch, dtype), device)
        from_text = {
            scheduler: _equals_diffusers(toy, one, backend, diffusers)
            for scheduler, one in requests.items()
        }
        started = dataclasses.replace(requests[schedulers[0]], init_image=_START, strength=0.7)
        from_image: bool | str = "-"
        if toy.from_images:
            from_image = _equals_diffusers(toy, started, backend, diffusers)
        sound = [one for one in requests.values() if from_text[one.scheduler] is True]
        same = _in_crowds(toy, sound, crowds, device, dtype)
        for scheduler in requests:
            count = same.get(scheduler, 0)
            yield (
                f"{toy.name}, {scheduler}",
                {
                    "dtype": dtype,
                    "text, one row = diffusers": from_text[scheduler],
                    "image, one row = diffusers": from_image,
                    f"same in crowds at {_ROWS} rows": f"{count} of {crowds}",
                },
            )
            from_image = ""

    return measure


def _equals_diffusers(
    toy: Toy, image_request: ImageRequest, backend: BatchedBackend, diffusers: Reference
) -> bool | str:
    """True, or how far the latents are apart."""
    try:
        generated = make_alone(backend, image_request)
    except Exception as error:  # the other rows go on
        return f"**{type(error).__name__}**"
    arguments = toy.arguments(image_request)
    latents, pixels = diffusers.latents_and_pixels(image_request, arguments)
    if not torch.equal(generated.latents, latents):
        apart = (generated.latents.float() - latents.float()).abs().max().item()
        return f"**latents differ by {apart:.2g}**"
    return np.array_equal(generated.pixels, pixels) or "**pixels differ**"


def _in_crowds(
    toy: Toy, requests: list[ImageRequest], crowds: int, device: str, dtype: str
) -> dict[str, int]:
    """Scheduler -> in how many crowds its image came out as it does alone."""
    backend = toy_backend(toy.name, _ROWS, on=device, dtype=dtype, **toy.spec)
    alone = [make_alone(backend, one) for one in requests]
    random, same = Random(0), dict.fromkeys((one.scheduler for one in requests), 0)
    for _ in range(crowds):
        together = make_together(backend, requests, random, tuple(same), toy.from_images)
        for one, generated, expected in zip(requests, together, alone, strict=True):
            same[one.scheduler] += _equal(generated, expected)
    return same


def _equal(generated: Generated, expected: Generated) -> bool:
    return torch.equal(generated.latents, expected.latents) and np.array_equal(
        generated.pixels, expected.pixels
    )

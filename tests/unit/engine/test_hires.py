"""A second pass: exactly what diffusers makes of the first pass's image, alone and in crowds."""

import dataclasses
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import deploy
from shared.core.errors import InvalidInput
from shared.core.model_catalog import ModelSpec
from tests.processes import wait_until
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import DIFFUSION_TOYS, TOYS, Toy
from tests.unit.engine.faulty import FaultyDevice, out_of_memory
from tests.unit.engine.reference import reference
from tests.unit.engine.test_loop import LIMIT, Steps, engine_of
from tests.unit.engine.toys import (
    long_but,
    open_backend,
    request,
    scheduler_of,
    toy_backend,
    toy_engine,
    toy_folder,
)
from worker.engine.device import open_device
from worker.engine.interface import Canceled, Hires, ImageRequest, Upscaler

DEMO = Path(deploy.__file__).parent / "demo_model" / "checkpoint"
ALL = {toy.name: toy for toy in (*DIFFUSION_TOYS, *TOYS.values()) if toy.from_images}
QUICK = ("sd15", "flux")
UPSCALERS: tuple[Upscaler, ...] = ("lanczos", "latent")


def hires(upscaler: Upscaler = "latent", **changes: Any) -> Hires:
    """To 96 × 128 pixels, by three of five steps."""
    values = {"width": 96, "height": 128, "strength": 0.6, "steps": 5, "upscaler": upscaler}
    return Hires(**{**values, **changes})


def by_diffusers(image_request: ImageRequest, toy: Toy) -> NDArray[np.uint8]:
    """Text to image, the upscaler, image to image; a generator of this seed for each call."""
    expected, asked = reference(toy_folder(toy.name)), image_request.hires
    assert asked is not None
    first = dataclasses.replace(image_request, hires=None)
    more = toy.arguments(first)
    if asked.upscaler == "lanczos":
        image = Image.fromarray(expected.pixels(first, more))
        return expected.pixels(image_request.second_pass(image=image), more)
    latents = expected.latents(first, more)
    pipeline = expected._from_text
    if toy.family in ("flux", "qwen-image"):
        factor = pipeline.vae_scale_factor
        latents = pipeline._unpack_latents(latents, first.height, first.width, factor)
    frames = latents.shape[2:-2]
    flat = latents.reshape(*latents.shape[:2], *latents.shape[-2:])
    factor = first.height // flat.shape[-2]
    larger = torch.nn.functional.interpolate(
        flat, size=(asked.height // factor, asked.width // factor), mode="bilinear"
    ).unflatten(2, (*frames, asked.height // factor))
    if toy.family == "sana-sprint":
        larger = larger * pipeline.scheduler.config.sigma_data
    return expected.pixels(image_request.second_pass(latents=larger), more)


@pytest.mark.parametrize("upscaler", UPSCALERS)
@pytest.mark.parametrize("name", long_but(QUICK, ALL))
def test_at_one_row_it_equals_diffusers(name: str, upscaler: Upscaler) -> None:
    toy = ALL[name]
    image_request = request(
        scheduler=scheduler_of(name), guidance_scale=toy.guidance, hires=hires(upscaler)
    )
    made = make_alone(toy_backend(name, 1, **toy.spec), image_request)
    assert made.pixels.shape == (128, 96, 3)
    assert np.array_equal(made.pixels, by_diffusers(image_request, toy))


@pytest.mark.long
@pytest.mark.parametrize("upscaler", UPSCALERS)
@pytest.mark.parametrize("name", long_but(QUICK, ["sd15", "sdxl", "flux", "sd3"]))
def test_its_bits_do_not_depend_on_its_neighbours(name: str, upscaler: Upscaler) -> None:
    toy = ALL[name]
    backend = toy_backend(name, 4, **toy.spec)
    image_request = request(
        scheduler=scheduler_of(name), guidance_scale=toy.guidance, hires=hires(upscaler)
    )
    alone = make_alone(backend, image_request)
    for seed in range(2):
        crowded = make_among_others(backend, image_request, Random(seed), toy.schedulers)
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


def test_latents_of_other_than_four_channels_are_upscaled() -> None:
    """The demo model's have eight, which diffusers' own image-to-image takes for an image."""
    spec = ModelSpec(name="demo", source=str(DEMO), max_batch_size=1)
    backend = open_backend(spec, open_device("cpu"))
    asked = request(width=128, height=128, hires=hires(width=192))
    made = make_alone(backend, asked)
    assert made.pixels.shape == (128, 192, 3)
    first = dataclasses.replace(asked, hires=None)
    latents = torch.nn.functional.interpolate(
        make_alone(backend, first).latents, size=(16, 24), mode="bilinear"
    )
    scheduler = backend._family.schedules.make(asked.scheduler, 5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(asked.seed))
    row = backend._model.prepare(asked.second_pass(latents=latents), backend.shape_of(asked))
    assert torch.equal(row.latents, scheduler.add_noise(latents, noise, row.timesteps[:1]))


def test_it_may_begin_with_an_image() -> None:
    start = Image.fromarray(np.random.default_rng(1).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    image_request = request(init_image=start, strength=0.6, hires=hires("lanczos"))
    made = make_alone(toy_backend("sd15", 1), image_request)
    assert np.array_equal(made.pixels, by_diffusers(image_request, ALL["sd15"]))


@pytest.mark.parametrize("name", long_but(QUICK, ALL))
def test_latents_of_a_stored_image_are_upscaled(name: str) -> None:
    """Encoded without noise at its own size, then as in a second pass."""
    toy, size = ALL[name], {"width": 96, "height": 128}
    backend = toy_backend(name, 1, **toy.spec)
    settings = {"scheduler": scheduler_of(name), "guidance_scale": toy.guidance, "strength": 0.6}
    pixels = make_alone(backend, request(**settings | {"strength": None})).pixels
    stored = Image.fromarray(pixels)
    asked = request(init_image=stored, upscaler="latent", **settings, **size)
    made = make_alone(backend, asked)
    family = backend._family
    image = family.image_pipeline.image_processor.preprocess(stored)
    with torch.no_grad():
        latents = family.latents_of(image)
    rows, columns = latents.shape[-2:]
    larger = torch.nn.functional.interpolate(
        latents, size=(rows * 2, columns * 96 // 64), mode="bilinear"
    )
    expected = request(init_latents=family.sourced(larger), **settings, **size)
    assert np.array_equal(
        made.pixels, reference(toy_folder(name)).pixels(expected, toy.arguments(expected))
    )


def test_one_ticket_has_both_passes_on_its_bill_and_in_its_progress() -> None:
    engine = engine_of(rows=2, tick=0.002, encode_seconds=0.001, decode_seconds=0.001)
    steps = Steps()
    asked = request(steps=40, hires=hires("lanczos", steps=100), previews=True)
    ticket = engine.submit(asked, steps)
    made = ticket.future.result(LIMIT)
    assert made.pixels.shape == (128, 96, 3)
    assert made.steps == 40 + 60
    assert made.hires is not None
    assert made.hires.steps == 60
    assert ticket.gpu_seconds == pytest.approx(engine.busy_seconds, rel=0.01)
    assert engine.counters.images == 1
    wait_until(lambda: steps.has_told(100), LIMIT, "the last step")
    assert {update.steps for update in steps.updates} == {100}
    fractions = [update.fraction for update in steps.updates]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for update in steps.updates:  # a step of the second pass has three times the pixels
        work = min(update.step, 40) + 3 * max(update.step - 40, 0)
        assert update.fraction == pytest.approx(work / (40 + 3 * 60))
    engine.close()


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_it_is_canceled_in_its_second_pass(upscaler: Upscaler) -> None:
    engine = engine_of()
    steps = Steps()
    ticket = engine.submit(request(steps=2, hires=hires(upscaler, steps=5000)), steps)
    wait_until(lambda: any(update.step > 2 for update in steps.updates), LIMIT, "the second pass")
    ticket.cancel()
    assert isinstance(ticket.future.exception(LIMIT), Canceled)
    assert ticket.gpu_seconds == pytest.approx(engine.busy_seconds)
    engine.close()


def test_what_only_the_second_pass_breaks_is_refused_at_once() -> None:
    engine = toy_engine("sd15")
    for broken in (hires(width=100), hires(steps=2, strength=0.3)):
        with pytest.raises(InvalidInput):
            engine.submit(request(hires=broken))
    engine.close()
    with pytest.raises(InvalidInput, match="does not support image-to-image"):
        toy_backend("pixart", 1).check(
            request(hires=hires(width=128)).second_pass(latents=object())
        )


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_out_of_memory_at_the_larger_size_repeats_the_second_pass_alone(
    upscaler: Upscaler,
) -> None:
    ticks = 0

    def once(kind: str, result: Any) -> Any:
        nonlocal ticks
        ticks += kind == "tick"
        if kind == "tick" and ticks == 6:
            raise out_of_memory()
        return result

    engine = toy_engine("sd15", FaultyDevice(once), max_batch_size=4)
    made = engine.submit(request(hires=hires(upscaler))).future.result(LIMIT)
    assert ticks == 4 + 2 + 3
    assert made.hires is not None
    assert (made.facts.batch_size, made.hires.facts.batch_size) == (4, 2)
    assert not made.facts.notes
    assert made.hires.facts.notes == ("out of memory at 4 rows: made at 2",)
    again = request(batch_size=4, hires=hires(upscaler, batch_size=2))
    assert np.array_equal(engine.submit(again).future.result(LIMIT).pixels, made.pixels)
    engine.close()


def test_an_unsound_second_pass_is_made_again_from_the_first_on() -> None:
    """Half precision that breaks in the second pass alone."""
    decoded = 0

    def broken(kind: str, result: Any) -> Any:
        nonlocal decoded
        decoded += kind == "decode"
        return (
            torch.full_like(result, torch.nan) if kind == "decode" and decoded in (2, 3) else result
        )

    engine = toy_engine("sd15", FaultyDevice(broken), dtype="bfloat16", max_batch_size=2)
    asked = request(hires=hires("lanczos"))
    made = engine.submit(asked).future.result(LIMIT)
    assert made.hires is not None
    assert made.facts.notes == ()
    for facts in (made.facts, made.hires.facts):
        assert (facts.dtype, facts.batch_size, facts.speed["compile"]) == ("float32", 1, "off")
    assert made.hires.facts.notes == ("unsound: made again at 1 row in float32 throughout",)
    expected = make_alone(toy_backend("sd15", 1), asked)  # whose weights were never rounded
    difference = made.pixels.astype(int) - expected.pixels
    assert abs(difference).max() <= 8
    engine.close()


def test_any_other_pipeline_upscales_pixels() -> None:
    """One that runs through its own call, one image at a time."""
    engine = toy_engine("sd3pag")
    assert engine.model.family == "flow"
    settings = {"scheduler": "flow-euler", "guidance_scale": 4.0}
    made = engine.submit(request(**settings, hires=hires("lanczos"))).future.result(LIMIT)
    first = engine.submit(request(**settings)).future.result(LIMIT)
    second = request(**settings, hires=hires("lanczos")).second_pass(
        image=Image.fromarray(first.pixels)
    )
    assert np.array_equal(made.pixels, engine.submit(second).future.result(LIMIT).pixels)
    assert made.steps == 4 + 3
    with pytest.raises(InvalidInput, match="lanczos"):
        engine.submit(request(**settings, hires=hires("latent")))
    engine.close()


def test_a_ticket_keeps_no_latents_of_an_image_that_is_done() -> None:
    engine = toy_engine("sd15")
    ticket = engine.submit(request(hires=hires("latent")))
    ticket.future.result(LIMIT)
    assert ticket.request.init_latents is None
    engine.close()

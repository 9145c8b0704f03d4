"""Repainting a part of an image: equal to diffusers at one row, independent of neighbours."""

import dataclasses
import itertools
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils._python_dispatch import TorchDispatchMode

from shared.core.errors import InvalidInput, ModelUnavailable
from shared.core.families import FAMILIES
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.unit.engine.concurrency import make_alone, make_among_others, repainted
from tests.unit.engine.families import DIFFUSION_TOYS, TOYS, Toy
from tests.unit.engine.loras import toy_loras
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import (
    long_but,
    request,
    scheduler_of,
    toy_backend,
    toy_engine,
    toy_folder,
)
from worker.engine.interface import Hires, ImageRequest, Mask, Upscaler
from worker.engine.pipeline_backend import rule_of

INPAINT_TOYS = {
    toy.name: toy
    for toy in (
        *DIFFUSION_TOYS,
        *TOYS.values(),
        Toy("sd15-inpaint", "sd", guidance=7.5),
        Toy("sdxl-inpaint", "sdxl", guidance=7.5),
    )
    if FAMILIES[toy.family].inpainting
}
MADE_FOR_IT = ("sd15-inpaint", "sdxl-inpaint")
QUICK = ("sd15", "sdxl-inpaint", "flux")
SOME_TOYS = long_but(QUICK, INPAINT_TOYS)
SOME_SCHEDULERS = long_but(["heun", "euler-ancestral", "dpmpp-2m-sde"], DIFFUSION_SCHEDULERS)


def asked_of(name: str, seed: int, padding: int | None = None, **changes: Any) -> ImageRequest:
    toy = INPAINT_TOYS[name]
    given = {"scheduler": scheduler_of(name), "guidance_scale": toy.guidance, "steps": 5}
    return repainted(request(**{**given, **toy.request, **changes}), Random(seed), padding)


def assert_equal_to_diffusers(name: str, asked: ImageRequest) -> None:
    """Latents and pixels, all bits."""
    toy = INPAINT_TOYS[name]
    made = make_alone(toy_backend(name, 1, **toy.spec), asked)
    expected, more = reference(toy_folder(name)), toy.arguments(asked)
    if asked.mask is None or asked.mask.padding is None:
        latents, pixels = expected.latents_and_pixels(asked, more)
        assert torch.equal(made.latents, latents)
    else:
        pixels = expected.pixels(asked, more)
    if toy.family != "sd3":  # diffusers forgets the VAE's shift there, and so the right colours
        assert np.array_equal(made.pixels, pixels)


@pytest.mark.parametrize("strength", [0.6, 0.99, 1.0])
@pytest.mark.parametrize("name", SOME_TOYS)
def test_one_row_equals_diffusers(name: str, strength: float) -> None:
    asked = asked_of(name, int(strength * 100), width=96)
    assert_equal_to_diffusers(name, dataclasses.replace(asked, strength=strength))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    long_but(
        [
            *(("sd15", each) for each in ("heun", "euler-ancestral", "dpmpp-2m-sde")),
            ("sd15-inpaint", "euler-ancestral"),
        ],
        itertools.product(("sd15", "sd15-inpaint"), DIFFUSION_SCHEDULERS),
    ),
)
def test_every_scheduler(name: str, scheduler: str) -> None:
    assert_equal_to_diffusers(name, asked_of(name, 3, scheduler=scheduler))


@pytest.mark.parametrize(
    "name",
    long_but(QUICK, [name for name in INPAINT_TOYS if name not in ("zimage", "sd3", "sd35")]),
)
def test_only_the_region_around_the_mask(name: str) -> None:
    assert_equal_to_diffusers(name, asked_of(name, 4, padding=8))


@pytest.mark.parametrize("name", MADE_FOR_IT)
def test_a_model_made_for_it_repaints_all_where_there_is_no_mask(name: str) -> None:
    """As diffusers does with a white one."""
    grey = Image.new("RGB", (64, 64), (127, 127, 127))
    white = Mask(Image.new("L", (64, 64), 255), preserve=False)
    text = request(guidance_scale=4.0)
    expected = dataclasses.replace(text, init_image=grey, strength=1.0, mask=white)
    made = make_alone(toy_backend(name, 1), text)
    assert torch.equal(made.latents, reference(toy_folder(name)).latents(expected))
    start = dataclasses.replace(text, init_image=grey, strength=0.7)
    made = make_alone(toy_backend(name, 1), start)
    expected = dataclasses.replace(start, mask=white)
    assert torch.equal(made.latents, reference(toy_folder(name)).latents(expected))


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
def test_a_model_made_for_it_makes_a_second_pass(upscaler: Upscaler) -> None:
    """Of an image from text; the second pass starts from pixels or latents, not from noise."""
    passes = [Hires(96, 96, strength, 4, upscaler) for strength in (0.3, 0.9)]
    made = [
        make_alone(toy_backend("sd15-inpaint", 1), request(hires=second)).pixels
        for second in passes
    ]
    assert made[0].shape == (96, 96, 3)
    assert not np.array_equal(made[0], made[1])


@pytest.mark.parametrize("name", long_but(["sdxl-inpaint", "flux"], INPAINT_TOYS))
def test_a_row_is_the_same_among_rows_of_every_kind(name: str) -> None:
    """From text, from images, and repainted: in one batch, whichever of them it is itself."""
    toy = INPAINT_TOYS[name]
    backend = toy_backend(name, 4, **toy.spec)
    schedulers = tuple(DIFFUSION_SCHEDULERS) if toy in DIFFUSION_TOYS else toy.schedulers
    schedulers = schedulers if name not in MADE_FOR_IT else tuple(DIFFUSION_SCHEDULERS)
    text = request(guidance_scale=toy.guidance, scheduler=scheduler_of(name), **toy.request)
    for seed, asked in enumerate((asked_of(name, 5), asked_of(name, 6, padding=4), text)):
        alone = make_alone(backend, asked)
        crowded = make_among_others(backend, asked, Random(seed), schedulers, inpainting=True)
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


def test_with_loras() -> None:
    assert_equal_to_diffusers(
        "sd15", asked_of("sd15", 7, loras=tuple(toy_loras("sd15").values())[:2])
    )


# --- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, 6])
@pytest.mark.parametrize("name", ["sd15", "sdxl-inpaint", "flux"])
def test_outside_the_mask_the_image_is_the_initial_one_to_the_last_bit(
    name: str, padding: int | None
) -> None:
    asked = asked_of(name, 8, padding)
    assert asked.mask is not None
    assert asked.init_image is not None
    kept = dataclasses.replace(asked, mask=dataclasses.replace(asked.mask, preserve=True))
    backend = toy_backend(name, 1, **INPAINT_TOYS[name].spec)
    pixels, start = make_alone(backend, kept).pixels, np.asarray(asked.init_image)
    mask = np.asarray(asked.mask.image)
    assert np.array_equal(pixels[mask == 0], start[mask == 0])
    assert not np.array_equal(pixels[mask == 255], start[mask == 255])
    if padding is None:
        bare = make_alone(backend, asked).pixels
        assert np.array_equal(pixels[mask == 255], bare[mask == 255])
        assert not np.array_equal(bare[mask == 0], start[mask == 0])


@pytest.mark.long
@pytest.mark.parametrize("scheduler", SOME_SCHEDULERS)
def test_half_precision_equals_diffusers_at_one_row(scheduler: str) -> None:
    asked = asked_of("sd15", 3, scheduler=scheduler)
    made = make_alone(toy_backend("sd15", 1, dtype="bfloat16"), asked)
    expected = reference(toy_folder("sd15"), torch.bfloat16).latents(asked)
    assert torch.equal(made.latents, expected)


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_between_two_ticks_nothing_is_copied_to_the_device(name: str) -> None:
    """A copy would stop the host until the device is idle. Here `meta` stands for a device."""
    backend = toy_backend(name, 1)
    asked = asked_of(name, 3)
    row, _ = backend.prepare(asked, backend.shape_of(asked))
    assert row.kept is not None
    kept = dataclasses.replace(
        row.kept, image=row.kept.image.to("meta"), noise=row.kept.noise.to("meta")
    )
    for table in ("sigmas", "alphas_cumprod"):
        if isinstance(getattr(row.scheduler, table, None), torch.Tensor):
            setattr(row.scheduler, table, getattr(row.scheduler, table).to("meta"))
    with Copies() as copies:
        image = backend._family.kept_under_noise(row.scheduler, kept, row.timesteps[1:2])
        assert image.device.type == "meta"
        assert not copies.devices
        backend._family.under_noise(row.scheduler, kept.image, kept.noise, row.timesteps[1:2])
        assert "meta" in copies.devices


class Copies(TorchDispatchMode):
    """Notes where tensors are copied to that lie elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        device = (kwargs or {}).get("device")
        moved = [each for each in args if isinstance(each, torch.Tensor) and device != each.device]
        if device is not None and moved:
            self.devices.add(device.type)
        made: torch.Tensor = func(*args, **(kwargs or {}))
        return made


@pytest.mark.parametrize("name", ["sd15", "sdxl-inpaint", "flux"])
def test_a_model_may_start_from_another_image_than_the_one_that_stays(name: str) -> None:
    asked = dataclasses.replace(asked_of(name, 9), strength=0.6)
    assert asked.mask is not None
    assert asked.init_image is not None
    other = ImageOps.invert(asked.init_image)
    backend = toy_backend(name, 1, **INPAINT_TOYS[name].spec)
    bare = make_alone(backend, dataclasses.replace(asked, init_image=other))
    begun = dataclasses.replace(asked.mask, start=other)
    filled = make_alone(backend, dataclasses.replace(asked, mask=begun))
    assert torch.equal(filled.latents, bare.latents)
    kept = dataclasses.replace(begun, preserve=True)
    pixels = make_alone(backend, dataclasses.replace(asked, mask=kept)).pixels
    mask = np.asarray(asked.mask.image)
    assert np.array_equal(pixels[mask == 0], np.asarray(asked.init_image)[mask == 0])
    assert np.array_equal(pixels[mask == 255], bare.pixels[mask == 255])


# --- what cannot be repainted ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lcm", {}, "does not support inpainting"),
        ("sd15", {"init_image": None, "strength": None}, "go together"),
        ("sd15", {"init_image": Image.new("RGB", (64, 72))}, "of one size"),
        ("sd15", {"mask": Mask(Image.new("L", (64, 72), 255))}, "of one size"),
        ("sd15", {"mask": Mask(Image.new("L", (64, 64), 120))}, "nothing to repaint"),
        ("sd15", {"hires": Hires(96, 96, 0.5, 4, "lanczos")}, "do not go together"),
    ],
)
def test_what_makes_no_sense_is_refused(name: str, changes: dict[str, Any], said: str) -> None:
    asked = dataclasses.replace(asked_of("sd15", 9), scheduler=scheduler_of(name), **changes)
    with pytest.raises(InvalidInput, match=said):
        toy_backend(name, 1).check(asked)


def test_a_pipeline_that_runs_as_a_whole_refuses_masks() -> None:
    engine = toy_engine("pag")
    try:
        with pytest.raises(InvalidInput, match="does not support inpainting"):
            engine.submit(asked_of("sd15", 9))
    finally:
        engine.close()


def test_a_checkpoint_for_inpainting_whose_network_takes_no_mask_is_refused(tmp_path: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    whole = StableDiffusionInpaintPipeline.from_pretrained(toy_folder("sd15"))
    whole.save_pretrained(tmp_path / "four")
    with pytest.raises(ModelUnavailable, match="its UNet takes 4 channels"):
        toy_engine("sd15", source=str(tmp_path / "four"))


@pytest.mark.parametrize("name", INPAINT_TOYS)
def test_the_table_that_the_api_reads_says_what_the_pipeline_does(name: str) -> None:
    family = toy_backend(name, 1, **INPAINT_TOYS[name].spec)._family
    assert rule_of(family.inpaint_pipeline) == family.facts.strength_rule

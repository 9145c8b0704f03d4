"""ControlNets: equal to diffusers' pipelines at one row, independent of neighbours in a batch."""

import dataclasses
import gc
import shutil
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from PIL import Image

from shared.core.errors import ControlNetUnavailable, InternalError, InvalidInput, OutOfMemory
from shared.core.families import FAMILIES
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.toy_models import build_controlnet
from tests.unit.engine.concurrency import make_alone, make_among_others, repainted
from tests.unit.engine.families import TOYS
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
from worker.engine.interface import Control, Hires, ImageRequest
from worker.engine.weights_cache import file_fault

UNETS = ("sd15", "sd21", "sdxl")
ALL = (*UNETS, "sd3", "flux")
QUICK = ("sd15", "flux")
BASES = {"sd15-inpaint": "sd15", "sdxl-inpaint": "sdxl"}
"""Whose nets a toy takes, if not its own."""


def image(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@lru_cache
def net_folder(toy: str, seed: int) -> Path:
    base = toy_folder(BASES.get(toy, toy))
    folder = base.parent / f"net-{seed}"
    build_controlnet(folder, base, seed)
    return folder


def control(toy: str, seed: int = 1, **changes: Any) -> Control:
    name = f"{BASES.get(toy, toy)}-net{seed}"
    made = Control(name, f"{name} {seed}", net_folder(toy, seed), image(seed))
    return dataclasses.replace(made, **changes)


def mixtures(toy: str) -> list[tuple[Control, ...]]:
    """None, one with one image or another, in a part of the steps, two, and one twice."""
    first, second = control(toy), control(toy, 2, scale=0.6)
    part = dataclasses.replace(first, image=image(9), scale=0.7, start=0.2, end=0.6)
    return [(), (first,), (part,), (second, part), (first, dataclasses.replace(part, scale=1.5))]


def asked_of(toy: str, **changes: Any) -> ImageRequest:
    flow = TOYS.get(toy)
    more: dict[str, Any] = {"guidance_scale": flow.guidance, **flow.request} if flow else {}
    if flow is None:
        more["negative_prompt"] = "blurry"
    return request(**{"scheduler": scheduler_of(toy), "steps": 5, **more, **changes})


def backend(toy: str, rows: int, **changes: Any) -> Any:
    flow = TOYS.get(toy)
    return toy_backend(toy, rows, **(flow.spec if flow else {}), **changes)


def assert_equal_to_diffusers(toy: str, asked: ImageRequest) -> None:
    flow = TOYS.get(toy)
    more = flow.arguments(asked) if flow else None
    made = make_alone(backend(toy, 1), asked)
    expected = reference(toy_folder(toy))
    if asked.mask is None or asked.mask.padding is None:
        latents, pixels = expected.latents_and_pixels(asked, more)
        assert torch.equal(made.latents, latents)
    else:
        pixels = expected.pixels(asked, more)
    assert np.array_equal(made.pixels, pixels)


@pytest.mark.parametrize("mixture", long_but([3], range(1, 5)))
@pytest.mark.parametrize("toy", long_but(QUICK, ALL))
def test_one_row_equals_diffusers(toy: str, mixture: int) -> None:
    assert_equal_to_diffusers(toy, asked_of(toy, width=96, controls=mixtures(toy)[mixture]))


def test_one_row_equals_diffusers_in_half_precision() -> None:
    asked = asked_of("flux", controls=mixtures("flux")[3])
    made = make_alone(backend("flux", 1, dtype="bfloat16"), asked)
    expected = reference(toy_folder("flux"), torch.bfloat16)
    assert torch.equal(made.latents, expected.latents(asked, TOYS["flux"].arguments(asked)))


@pytest.mark.long
@pytest.mark.parametrize(
    "scheduler", long_but(["heun", "euler-ancestral", "dpmpp-2m-sde"], DIFFUSION_SCHEDULERS)
)
def test_every_scheduler(scheduler: str) -> None:
    assert_equal_to_diffusers(
        "sd15", asked_of("sd15", scheduler=scheduler, controls=mixtures("sd15")[2])
    )


@pytest.mark.long
@pytest.mark.parametrize("toy", long_but(QUICK, ["sd15", "sdxl"]))
def test_without_guidance_and_with_loras(toy: str) -> None:
    controls = mixtures(toy)[3]
    assert_equal_to_diffusers(toy, asked_of(toy, guidance_scale=1.0, controls=controls))
    loras = tuple(toy_loras(toy).values())[:2]
    assert_equal_to_diffusers(toy, asked_of(toy, loras=loras, controls=controls))


@pytest.mark.long
@pytest.mark.parametrize(
    "toy",
    [toy for toy in ALL if FAMILIES[TOYS[toy].family if toy in TOYS else "sd"].control_images],
)
def test_image_to_image(toy: str) -> None:
    # FLUX's pipeline wants modes of several nets, which only a union of nets has.
    controls = mixtures(toy)[2 if toy == "flux" else 3]
    asked = asked_of(toy, init_image=image(5), strength=0.6, controls=controls)
    assert_equal_to_diffusers(toy, asked)


@pytest.mark.parametrize("padding", [None, 8])
@pytest.mark.parametrize(
    "toy", long_but(["sd15", "sd15-inpaint"], ["sd15", "sdxl", "sd15-inpaint", "sdxl-inpaint"])
)
def test_inpainting(toy: str, padding: int | None) -> None:
    controls = mixtures(toy)[3 if padding is None else 2]  # diffusers pads for one net alone
    asked = repainted(asked_of(toy, controls=controls), Random(3), padding)
    assert_equal_to_diffusers(toy, asked)


def test_flux_inpainting_and_true_guidance() -> None:
    controls = mixtures("flux")[2]
    asked = repainted(asked_of("flux", controls=controls), Random(3))
    assert_equal_to_diffusers("flux", asked)
    guided = asked_of("flux", controls=controls, negative_prompt="blurry", true_cfg_scale=3.0)
    made = make_alone(backend("flux", 1), guided)
    more = {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}
    assert torch.equal(made.latents, reference(toy_folder("flux")).latents(guided, more))


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
def test_a_second_pass_is_controlled_too(upscaler: Any) -> None:
    """With the same image at its own size, as who chains diffusers' pipelines has it."""
    text = asked_of("sd15", controls=mixtures("sd15")[1])
    whole = dataclasses.replace(text, hires=Hires(96, 96, 0.6, 5, upscaler))
    first = make_alone(backend("sd15", 1), text)
    if upscaler == "lanczos":
        second = whole.second_pass(image=Image.fromarray(first.pixels))
    else:
        larger = torch.nn.functional.interpolate(first.latents, size=(12, 12), mode="bilinear")
        second = whole.second_pass(latents=larger)
    made = make_alone(backend("sd15", 1), whole)
    assert np.array_equal(made.pixels, reference(toy_folder("sd15")).pixels(second))


@pytest.mark.long
@pytest.mark.parametrize("toy", long_but(QUICK, ALL))
def test_a_row_is_the_same_among_rows_with_other_controls_or_none(toy: str) -> None:
    four, choices = backend(toy, 4), mixtures(toy)
    flow = TOYS.get(toy)
    schedulers = flow.schedulers if flow else tuple(DIFFUSION_SCHEDULERS)
    crowd = dict(flow.crowd) if flow else {}
    if flow and not FAMILIES[flow.family].control_images:
        crowd["from_images"] = False
    for seed, mine in enumerate(choices):
        asked = asked_of(toy, controls=mine)
        alone = make_alone(four, asked)
        crowded = make_among_others(
            four,
            asked,
            Random(seed),
            schedulers,
            fields=[{"controls": controls} for controls in choices],
            **crowd,
        )
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


@pytest.mark.long
@pytest.mark.parametrize("toy", long_but(QUICK, ALL))
def test_in_a_batch_each_row_has_its_own_controls(toy: str) -> None:
    """Between shapes only the last bits differ: no row has a neighbour's."""
    one, four, choices = backend(toy, 1), backend(toy, 4), mixtures(toy)
    flow = TOYS.get(toy)
    crowd = {**(flow.crowd if flow else {}), "from_images": False}
    for mine in choices[1:]:
        asked = asked_of(toy, controls=mine)
        mixed = make_among_others(
            four,
            asked,
            Random(1),
            (asked.scheduler,),
            fields=[{"controls": controls} for controls in choices],
            **crowd,
        )
        alone = make_alone(one, asked)
        plain = make_alone(one, dataclasses.replace(asked, controls=()))
        changed = (alone.latents - plain.latents).abs().max()
        assert (mixed.latents - alone.latents).abs().max() < changed / 100


# --- what cannot be loaded ------------------------------------------------------------------------


def refusal(made: Control, toy: str = "sd15") -> str:
    other = dataclasses.replace(made, sha256=uuid4().hex)  # as the files are other ones
    with pytest.raises(ControlNetUnavailable) as raised:
        backend(toy, 1).load_weights(asked_of(toy, controls=(other,)))
    assert len(raised.value.message.splitlines()) == 1
    return raised.value.message


def copied(folder: Path, toy: str = "sd15") -> Control:
    shutil.copytree(net_folder(toy, 1), folder)
    return dataclasses.replace(control(toy), sha256=str(folder), path=folder)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    made = copied(tmp_path / "net")
    (weights,) = made.path.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "bytes are missing" in refusal(made)
    weights.write_bytes(b"\x80\x04\x95pickled weights")
    assert "is not a safetensors file" in refusal(made)
    weights.unlink()
    assert "has no safetensors file" in refusal(made)
    weights.write_bytes(whole)
    (made.path / "config.json").write_text("{}")
    assert "is a None" in refusal(made)
    (made.path / "config.json").unlink()
    assert "cannot be loaded" in refusal(made)


def test_a_damaged_net_is_not_read_for_every_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, read = copied(tmp_path / "net"), list[Path]()
    (weights,) = made.path.glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    asked = asked_of("sd15", controls=(made,))

    def fault(path: Path) -> str | None:
        read.append(path)
        return file_fault(path)

    monkeypatch.setattr("worker.engine.controls.file_fault", fault)
    said = set()
    for _ in range(3):
        with pytest.raises(ControlNetUnavailable) as raised:
            backend("sd15", 1).load_weights(asked)
        said.add(raised.value.message)
    assert (len(read), len(said)) == (1, 1)
    weights.write_bytes(whole)
    monkeypatch.setattr("worker.engine.weights_cache._REFUSED_SECONDS", -1.0)
    cache = backend("sd15", 1)._controlnets
    cache._refused.clear()
    assert cache.get((made,))[0].bytes


@pytest.mark.parametrize(
    "error",
    [MemoryError("os error 12"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_net_is_not_blamed_where_the_worker_has_no_memory(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = control("sd15", 7, sha256=uuid4().hex)
    asked = asked_of("sd15", controls=(made,))

    def fails(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("worker.engine.controls.load_network", fails)
        with pytest.raises(OutOfMemory, match="no memory to load ControlNet"):
            backend("sd15", 1).load_weights(asked)
    assert backend("sd15", 1).load_weights(asked)  # nothing is held against it


def test_one_file_of_a_folder(tmp_path: Path) -> None:
    made = copied(tmp_path / "net")
    (weights,) = made.path.glob("*.safetensors")
    other = weights.rename(made.path / "diffusion_pytorch_model.other.safetensors")
    asked = asked_of("sd15", controls=(dataclasses.replace(made, path=other),))
    same = asked_of("sd15", controls=(control("sd15"),))
    alone = backend("sd15", 1)
    assert np.array_equal(make_alone(alone, asked).pixels, make_alone(alone, same).pixels)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    net = ControlNetModel.from_pretrained(net_folder("sd15", 1))
    with torch.no_grad():
        net.controlnet_mid_block.weight.fill_(float("nan"))
    net.save_pretrained(tmp_path)
    assert "not finite" in refusal(Control("nan", "nan", tmp_path, image(1)))


@pytest.mark.parametrize(
    ("made_for", "used_with"),
    [("sd15", "sdxl"), ("sdxl", "sd15"), ("flux", "sd3")],
)
def test_a_net_of_another_model_is_refused(made_for: str, used_with: str) -> None:
    said = "takes a" if made_for == "flux" else "does not fit this model"
    assert said in refusal(control(made_for), used_with)


def test_models_that_take_none_refuse_them() -> None:
    made = (control("sd15"),)
    for toy in ("lcm", "pixart", "zimage"):
        asked = request(controls=made, scheduler=scheduler_of(toy))
        with pytest.raises(InvalidInput, match="does not support ControlNets"):
            toy_backend(toy, 1).check(asked)
    second = asked_of("sd3", controls=(control("sd3"),), hires=Hires(96, 96, 0.6, 5, "lanczos"))
    for asked in (second, second.second_pass(image=image(1))):
        with pytest.raises(InvalidInput, match="second passes, not both"):
            backend("sd3", 1).check(asked)
    engine = toy_engine("pag")
    try:
        with pytest.raises(InvalidInput, match="does not support ControlNets"):
            engine.submit(request(controls=made))
    finally:
        engine.close()


def test_a_damaged_net_fails_its_own_image_and_no_other(tmp_path: Path) -> None:
    made = copied(tmp_path / "net")
    (weights,) = made.path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    engine = toy_engine("sd15")
    try:
        plain = engine.submit(request(steps=20))
        with pytest.raises(ControlNetUnavailable):
            engine.submit(request(controls=(made,)))
        asked = request(controls=(control("sd15"),))
        image_ = engine.submit(asked).future.result(timeout=120)
        assert np.array_equal(image_.pixels, make_alone(backend("sd15", 1), asked).pixels)
        assert plain.future.result(timeout=120).pixels.any()
    finally:
        engine.close()


def test_a_net_that_fails_in_a_tick_fails_the_rows_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = toy_engine("sd15", max_batch_size=2)
    try:
        bad = request(controls=(control("sd15"),), steps=8)
        loaded: Any = engine._backend.load_weights(bad)
        ((net,),) = loaded[1:]

        def fails(*_: Any, **__: Any) -> None:
            raise ValueError("no")

        monkeypatch.setattr(net.network, "forward", fails)
        plain, failing = engine.submit(request(steps=8)), engine.submit(bad)
        with pytest.raises(InternalError):
            failing.future.result(timeout=120)
        assert plain.future.result(timeout=120).pixels.any()
    finally:
        engine.close()


def test_the_cache_is_bounded_by_bytes_and_keeps_what_is_held() -> None:
    nets = [control("sd15", seed) for seed in (1, 2)]
    size = backend("sd15", 1).load_weights(request(controls=(nets[0],)))[1][0].bytes
    small = backend("sd15", 1, controlnet_cache_bytes=size)
    held = small.load_weights(request(controls=tuple(nets)))[1]
    assert list(small._controlnets.loaded) == [nets[1].name]
    assert small.load_weights(request(controls=tuple(nets)))[1] == held
    small.release_memory()
    assert not small._controlnets.loaded
    del held
    gc.collect()
    again = small.load_weights(request(controls=(nets[0],)))[1]
    assert list(small._controlnets.loaded) == [nets[0].name]
    assert again[0].bytes == size


def test_a_model_that_is_compiled_runs_controlled_rows_eagerly() -> None:
    compiled = backend("sd15", 2, compile="inductor")
    assert compiled.shape_of(request(controls=(control("sd15"),))).eager
    assert not compiled.shape_of(request()).eager

"""LoRAs: equal to diffusers' own at one row, independent of neighbours in a batch."""

import dataclasses
import gc
import hashlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models import modeling_utils

from shared.core.errors import InvalidInput, LoraUnavailable
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import TOYS
from tests.unit.engine.loras import ATTENTION, toy_loras, weights, written
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import (
    long_but,
    request,
    scheduler_of,
    toy_backend,
    toy_engine,
    toy_folder,
)
from worker.engine.adapters import AdapterCache, hollow
from worker.engine.interface import ImageRequest, Lora

UNETS = ("sd15", "sd21", "sdxl", "lcm")
TRANSFORMERS = ("sd3", "flux", "sana", "qwen", "zimage", "lumina2")
ALL = (*UNETS, *TRANSFORMERS)
QUICK = ("sd15", "flux", "zimage")
"""With text encoders, a transformer, and one whose layers have names of their own."""


def scaled(lora: Lora, scale: float) -> Lora:
    return dataclasses.replace(lora, scale=scale)


def mixtures(family: str) -> list[tuple[Lora, ...]]:
    """None, each alone, and several at once in different orders and strengths."""
    first, second, third, fourth = toy_loras(family).values()
    return [
        (),
        *((lora,) for lora in toy_loras(family).values()),
        (scaled(third, -0.5), scaled(fourth, 1.3)),
        (scaled(fourth, 1.3), scaled(second, 0.3), first, scaled(third, 2.0)),
    ]


def assert_equal_to_diffusers(family: str, asked: ImageRequest) -> None:
    toy = TOYS.get(family)
    more = toy.arguments(asked) if toy else None
    made = make_alone(toy_backend(family, 1, **(toy.spec if toy else {})), asked)
    latents, pixels = reference(toy_folder(family)).latents_and_pixels(asked, more)
    assert torch.equal(made.latents, latents)
    assert np.array_equal(made.pixels, pixels)


def asked_of(family: str, **changes: Any) -> ImageRequest:
    toy = TOYS.get(family)
    more: dict[str, Any] = {"guidance_scale": toy.guidance, **toy.request} if toy else {}
    if toy is None and family != "lcm":
        more["negative_prompt"] = "blurry"
    return request(**{"scheduler": scheduler_of(family), **more, **changes})


FAMILIES = long_but(QUICK, ALL)
CASES = long_but(
    [*((family, 6) for family in QUICK), *(("sd15", mixture) for mixture in (0, 3, 4))],
    [
        (family, mixture)
        for family in ALL
        for mixture in (range(7) if family in ("sd15", "flux") else (4, 6))
    ],
)


@pytest.mark.parametrize(("family", "mixture"), CASES)
def test_one_row_equals_diffusers(family: str, mixture: int) -> None:
    assert_equal_to_diffusers(family, asked_of(family, loras=mixtures(family)[mixture]))


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_same_among_rows_with_other_loras_or_none(family: str) -> None:
    toy = TOYS.get(family)
    backend = toy_backend(family, 4, **(toy.spec if toy else {}))
    schedulers = toy.schedulers if toy else tuple(DIFFUSION_SCHEDULERS)
    schedulers = ("lcm",) if family == "lcm" else schedulers
    choices, crowd = mixtures(family), toy.crowd if toy else {}
    observed = (choices[0], choices[2], choices[6]) if family == "sd15" else (choices[6],)
    for seed, mine in enumerate(observed):
        asked = asked_of(family, loras=mine, steps=5)
        alone = make_alone(backend, asked)
        crowded = make_among_others(
            backend, asked, Random(seed), schedulers, loras=choices, **crowd
        )
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_batch_each_row_has_its_own_loras(family: str) -> None:
    """Between shapes only the last bits differ: no row has a neighbour's."""
    toy = TOYS.get(family)
    spec = toy.spec if toy else {}
    one, four = toy_backend(family, 1, **spec), toy_backend(family, 4, **spec)
    choices = mixtures(family)
    for mine in (choices[4], choices[6]):
        asked = asked_of(family, loras=mine, steps=2)
        crowd: dict[str, Any] = {"loras": choices, **(toy.crowd if toy else {})}
        schedulers = toy.schedulers if toy else (asked.scheduler,)
        mixed = make_among_others(four, asked, Random(1), schedulers, **crowd)
        alone = make_alone(one, asked)
        plain = make_alone(one, dataclasses.replace(asked, loras=()))
        changed = (alone.latents - plain.latents).abs().max()
        assert (mixed.latents - alone.latents).abs().max() < changed / 100


# --- what cannot be loaded ------------------------------------------------------------------------


def refusal(lora: Lora, family: str = "sd15") -> str:
    cache = AdapterCache(toy_backend(family, 1)._loaded.pipeline, 10**9)
    with pytest.raises(LoraUnavailable) as raised:
        cache.get((lora,))
    assert len(raised.value.message.splitlines()) == 1
    return raised.value.message


def _file(folder: Path, content: bytes) -> Lora:
    path = folder / "bad.safetensors"
    path.write_bytes(content)
    return Lora("bad", hashlib.sha256(content).hexdigest(), 1.0, path)


def test_what_is_no_safetensors_file_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    whole = toy_loras("sd15")["attention"].path.read_bytes()
    assert "cannot be read" in refusal(Lora("gone", "0" * 64, 1.0, tmp_path / "gone"))
    assert "is not a safetensors file" in refusal(_file(tmp_path, b"\x80\x04\x95pickled weights"))
    assert "bytes are missing" in refusal(_file(tmp_path, whole[:-100]))
    assert "belong to no tensor" in refusal(_file(tmp_path, whole + b"more"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("made_for", "used_with"),
    [("sd15", "sdxl"), ("sdxl", "sd15"), ("flux", "sd3"), ("sd15", "flux")],
)
def test_a_lora_of_another_model_is_refused(made_for: str, used_with: str) -> None:
    for lora in toy_loras(made_for).values():
        assert "does not fit this model" in refusal(lora, used_with)


def test_weights_without_a_place_in_the_model_are_not_left_out_silently() -> None:
    tensors = weights("sd15", 1, 4, {"unet": ATTENTION})
    tensors |= {f"unet.nowhere.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}
    assert "does not fit this model" in refusal(written("nowhere", tensors))


def test_numbers_that_are_not_finite_are_refused() -> None:
    tensors = weights("sd15", 1, 4, {"unet": ATTENTION})
    next(iter(tensors.values()))[0, 0] = float("nan")
    assert "not finite" in refusal(written("nan", tensors))


def test_magnitudes_of_dora_are_refused_and_not_left_out_as_diffusers_does() -> None:
    tensors = weights("sd15", 1, 4, {"unet": ("to_q",)})
    tensors |= {
        key.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)
        for key in list(tensors)
        if "lora_A" in key
    }
    assert "DoRA" in refusal(written("dora", tensors))


def test_models_that_have_no_place_for_loras_refuse_them() -> None:
    loras = (toy_loras("sd15")["attention"],)
    with pytest.raises(InvalidInput, match="does not support LoRAs"):
        toy_backend("sd15", 1, fuse_qkv=True).check(request(loras=loras))
    with pytest.raises(InvalidInput, match="does not support LoRAs"):
        toy_backend("pixart", 1).check(request(loras=loras, scheduler="dpmpp-2m"))


def test_the_precision_of_a_model_is_not_asked_for_with_each_of_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """diffusers looks through the whole model for it: of XL that took seconds before its first
    LoRA."""
    asked, ask = [], modeling_utils.get_parameter_dtype

    def noted(module: torch.nn.Module) -> torch.dtype:
        asked.append(module)
        return ask(module)

    monkeypatch.setattr(modeling_utils, "get_parameter_dtype", noted)
    hollow(toy_backend("sd15", 1)._loaded.pipeline)
    assert 0 < len(asked) < 10


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_is_bounded_by_bytes_and_keeps_what_was_used_last() -> None:
    small, large, third, _ = toy_loras("sd15").values()
    backend = toy_backend("sd15", 1)
    loaded, _ = backend.load_weights(request(loras=(small, large, third)))
    sizes = {
        lora.name: adapter.bytes
        for lora, (adapter, _) in zip((small, large, third), loaded, strict=True)
    }
    cache = AdapterCache(backend._loaded.pipeline, sizes[small.name] + sizes[third.name])
    cache.get((small, third))
    cache.get((small,))
    held = cache.get((large,))  # larger than all that may stay, but somebody holds it
    assert not cache.loaded
    assert cache.get((large,))[0][0] is held[0][0]
    del held
    gc.collect()
    cache.get((third, small))
    assert list(cache.loaded) == [third.name, small.name]
    assert cache.bytes <= sizes[small.name] + sizes[third.name]


def test_a_file_that_cannot_be_loaded_leaves_no_trace_in_the_next(tmp_path: Path) -> None:
    engine = toy_engine("sd15")
    try:
        with pytest.raises(LoraUnavailable):
            engine.submit(request(loras=(_file(tmp_path, b"nothing"),)))
        with pytest.raises(LoraUnavailable):
            engine.submit(request(loras=(toy_loras("sdxl")["attention"],)))
        asked = request(loras=(toy_loras("sd15")["encoders"],))
        image = engine.submit(asked).future.result(timeout=120)
        assert np.array_equal(image.pixels, make_alone(toy_backend("sd15", 1), asked).pixels)
        plain = engine.submit(request()).future.result(timeout=120)
        assert np.array_equal(plain.pixels, make_alone(toy_backend("sd15", 1), request()).pixels)
        held = toy_loras("sd15")["encoders"]
        assert engine.loras == {held.name: held.sha256}
    finally:
        engine.close()

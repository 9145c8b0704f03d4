"""Reference images: equal to diffusers' IP-Adapter at one row, independent of neighbours."""

import atexit
import dataclasses
import hashlib
import itertools
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image

from shared.core.errors import InvalidInput, ModelUnavailable
from shared.core.model_catalog import IpAdapterSpec, ModelSpec
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.toy_models import build_ip_adapter
from tests.unit.engine.concurrency import make_alone, make_among_others, repainted
from tests.unit.engine.loras import toy_loras
from tests.unit.engine.reference import Reference as Diffusers
from tests.unit.engine.toys import (
    long_but,
    request,
    scheduler_of,
    toy_backend,
    toy_engine,
    toy_folder,
    toy_spec,
)
from worker.engine.batched_backend import BatchedBackend
from worker.engine.interface import Hires, ImageRequest, Reference
from worker.models.cache import estimate_memory

FAMILIES = ("sd15", "sdxl", "lcm")


@lru_cache
def adapter(family: str, *, plus: bool = False) -> IpAdapterSpec:
    """A toy adapter for a toy model, and where it is."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-ip-adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    build_ip_adapter(toy_folder(family), folder, plus=plus)
    return IpAdapterSpec(source=str(folder), file="ip-adapter.safetensors")


def backend_of(family: str, rows: int, **changes: Any) -> BatchedBackend:
    return toy_backend(family, rows, ip_adapter=adapter(family), **changes)


@lru_cache
def diffusers_of(family: str, adapters: int, *, plus: bool = False) -> Diffusers:
    """diffusers with the adapter loaded once for each reference."""
    expected, spec = Diffusers(toy_folder(family)), adapter(family, plus=plus)
    expected._from_text.load_ip_adapter(
        spec.source, subfolder="", weight_name=[spec.file] * adapters
    )
    return expected


def image(seed: int, scale: float = 0.6) -> Reference:
    pixels = np.random.default_rng(seed).integers(0, 255, (50 + seed, 40, 3), dtype=np.uint8)
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Reference(Image.fromarray(pixels), sha256, scale)


CHOICES: tuple[tuple[Reference, ...], ...] = (
    (),
    (image(1),),
    (image(2, 1.0),),
    (image(1, 0.3), image(2, 0.9)),
    (image(2, 0.9), image(1, 0.3)),
)


def asked_of(family: str, **changes: Any) -> ImageRequest:
    return request(**{"scheduler": scheduler_of(family), "references": CHOICES[1], **changes})


def assert_equal_to_diffusers(
    backend: BatchedBackend, family: str, asked: ImageRequest, *, plus: bool = False
) -> None:
    made = make_alone(backend, asked)
    expected = diffusers_of(family, len(asked.references), plus=plus)
    expected._from_text.set_ip_adapter_scale([each.scale for each in asked.references])
    more = {"ip_adapter_image": [each.image for each in asked.references]}
    latents, pixels = expected.latents_and_pixels(asked, more)
    assert torch.equal(made.latents, latents)
    assert np.array_equal(made.pixels, pixels)


@pytest.mark.parametrize(
    ("family", "choice"),
    long_but(
        [("sd15", 1), ("sd15", 3), ("sdxl", 3)],
        itertools.product(FAMILIES, (1, 2, 3, 4)),
    ),
)
def test_one_row_equals_diffusers(family: str, choice: int) -> None:
    for guidance in (7.5, 1.0):
        asked = asked_of(family, references=CHOICES[choice], guidance_scale=guidance)
        assert_equal_to_diffusers(backend_of(family, 1), family, asked)


@pytest.mark.parametrize("family", long_but(["sd15"], ["sd15", "sdxl"]))
def test_one_row_equals_diffusers_with_an_adapter_of_the_kind_plus(family: str) -> None:
    backend = toy_backend(family, 1, ip_adapter=adapter(family, plus=True))
    assert_equal_to_diffusers(backend, family, asked_of(family), plus=True)


@pytest.mark.long
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_one_row_equals_diffusers_from_an_image_and_under_a_mask_and_with_loras(
    family: str,
) -> None:
    backend = backend_of(family, 1)
    asked = asked_of(family, init_image=image(3).image, strength=0.7)
    assert_equal_to_diffusers(backend, family, asked)
    assert_equal_to_diffusers(backend, family, repainted(asked_of(family), Random(1)))
    inpaint = backend_of(f"{family}-inpaint", 1)  # 9 channels
    repainted_by_it = repainted(asked_of(family), Random(1))
    assert_equal_to_diffusers(inpaint, f"{family}-inpaint", repainted_by_it)
    loras = (toy_loras(family)["attention"],)
    assert_equal_to_diffusers(backend, family, asked_of(family, loras=loras))


@pytest.mark.long
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_row_is_the_same_among_rows_with_other_references_or_none(family: str) -> None:
    backend = backend_of(family, 4)
    for seed, mine in enumerate((CHOICES[0], CHOICES[1], CHOICES[3])):
        asked = asked_of(family, references=mine, steps=5)
        alone = make_alone(backend, asked)
        crowded = make_among_others(
            backend,
            asked,
            Random(seed),
            tuple(DIFFUSION_SCHEDULERS),
            loras=((), (toy_loras(family)["attention"],)),
            inpainting=True,
            fields=[{"references": choice} for choice in CHOICES],
        )
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


def test_in_a_batch_each_row_has_its_own_references() -> None:
    """Between shapes only the last bits differ: no row has a neighbour's."""
    one, four, plain = backend_of("sd15", 1), backend_of("sd15", 4), toy_backend("sd15", 1)
    made = []
    for mine in CHOICES:
        asked = asked_of("sd15", references=mine, steps=2)
        mixed = make_among_others(
            four, asked, Random(1), ("euler",), fields=[{"references": each} for each in CHOICES]
        )
        alone = make_alone(one, asked)
        made.append(alone.latents)
        without = make_alone(plain, dataclasses.replace(asked, references=()))
        changed = float((alone.latents - without.latents).abs().max())
        assert (changed > 0) == bool(mine)
        assert float((mixed.latents - alone.latents).abs().max()) <= max(changed / 100, 1e-4)
    assert not torch.equal(made[1], made[2])
    assert not torch.equal(made[2], made[3])


def test_a_model_with_an_adapter_makes_what_it_made_without_where_no_reference_is_given() -> None:
    for references in ((), (image(1, 0.0),)):
        asked = asked_of("sd15", references=references)
        plain = dataclasses.replace(asked, references=())
        made = make_alone(backend_of("sd15", 1), asked)
        assert torch.equal(made.latents, make_alone(toy_backend("sd15", 1), plain).latents)


def test_rows_have_their_own_where_the_network_s_weights_are_offloaded() -> None:
    asked = asked_of("sd15", loras=(toy_loras("sd15")["attention"],))
    expected = make_alone(backend_of("sd15", 2), asked)
    offloaded = toy_backend.__wrapped__("sd15", 2, ip_adapter=adapter("sd15"))
    accelerate.cpu_offload(offloaded._loaded.pipeline.unet, torch.device("cpu"))
    assert torch.equal(make_alone(offloaded, asked).latents, expected.latents)


def test_what_is_attended_to_is_computed_anew_with_other_threads() -> None:
    """How sums are split among threads is part of an image's bytes."""
    backend = toy_backend.__wrapped__("sd15", 1, ip_adapter=adapter("sd15"))
    for threads in (1, 2, 1, 2):
        asked = asked_of("sd15", cpu_threads=threads)
        backend.prepare(asked, backend.shape_of(asked))
    backend.prepare(asked_of("sd15"), backend.shape_of(asked_of("sd15")))  # with one, as others do
    kept: Any = backend._family.prompts._kept
    assert sum(key[0] == "reference" for key in kept) == 2


def test_references_count_in_both_passes() -> None:
    second = Hires(width=96, height=96, strength=0.6, steps=5, upscaler="lanczos")
    asked = asked_of("sd15", hires=second)
    backend = backend_of("sd15", 1)
    first = make_alone(backend, dataclasses.replace(asked, hires=None))
    made = make_alone(backend, asked)
    assert_equal_to_diffusers(
        backend, "sd15", asked.second_pass(image=Image.fromarray(first.pixels))
    )
    again = make_alone(backend, asked.second_pass(image=Image.fromarray(first.pixels)))
    assert np.array_equal(made.pixels, again.pixels)


def test_an_image_is_made_again_in_float32_with_its_references() -> None:
    upcast = toy_backend("sd15", 1, ip_adapter=adapter("sd15"), dtype="bfloat16")
    asked = asked_of("sd15")
    expected = make_alone(backend_of("sd15", 1), asked)
    shape = upcast.shape_of(asked)
    row, _ = upcast.prepare(asked, shape)
    row.latents = torch.full_like(row.latents, float("nan"))
    made, note = upcast.rescue(asked, row, lambda: None)
    assert "float32 throughout" in note
    difference = np.abs(made.pixels.astype(int) - expected.pixels.astype(int))
    plain = make_alone(toy_backend("sd15", 1), dataclasses.replace(asked, references=()))
    assert difference.max() < np.abs(plain.pixels.astype(int) - expected.pixels.astype(int)).max()


def test_a_copy_in_float32_has_no_copy_of_the_model() -> None:
    backend = toy_backend("sd15", 1, ip_adapter=adapter("sd15"), dtype="bfloat16")
    mine: Any = backend._family.ip_adapter

    def held(of: Any) -> int:
        parts = (of._shell.unet, of._shell.text_encoder, of._shell.image_encoder)
        weights = [weight for part in parts for weight in part.parameters()]
        return sum(weight.untyped_storage().nbytes() for weight in weights)

    copied = mine.upcast()
    assert copied.memory_bytes == 2 * mine.memory_bytes
    assert held(copied) == held(mine) + mine.memory_bytes


def test_what_is_looked_at_is_on_record() -> None:
    engine = toy_engine("sd15", ip_adapter=adapter("sd15"))
    try:
        made = engine.submit(asked_of("sd15")).future.result(timeout=120)
        assert made.facts.references == CHOICES[1]
        backend: Any = engine._backend
        assert made.facts.ip_adapter == backend._family.ip_adapter.sha256
        plain = engine.submit(asked_of("sd15", references=())).future.result(timeout=120)
        assert plain.facts.ip_adapter is None
    finally:
        engine.close()


def test_the_memory_of_an_adapter_is_estimated_as_a_model_s() -> None:
    folder = Path(adapter("sd15").source)
    weights = (folder / "ip-adapter.safetensors").stat().st_size
    encoder = (folder / "image_encoder" / "model.safetensors").stat().st_size
    for settings, expected in (
        ({}, weights + encoder),
        ({"text_encoder": "cpu"}, weights),
        ({"offload": "model"}, weights),
        ({"offload": "group"}, weights),
    ):
        plain = estimate_memory(toy_spec("sd15", **settings))
        having = estimate_memory(toy_spec("sd15", ip_adapter=adapter("sd15"), **settings))
        assert having - plain == expected


# --- what cannot be loaded ------------------------------------------------------------------------


def test_a_model_without_an_adapter_refuses_references() -> None:
    for family in ("sd15", "flux"):
        asked = asked_of(family, guidance_scale=1.0)
        with pytest.raises(InvalidInput, match="does not support reference images"):
            toy_backend(family, 1).check(asked)


def _refusal(family: str, spec: IpAdapterSpec) -> str:
    with pytest.raises(ModelUnavailable) as raised:
        toy_backend(family, 1, ip_adapter=spec)
    assert len(raised.value.message.splitlines()) == 1
    return raised.value.message


def test_an_adapter_that_does_not_fit_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    assert "does not fit model" in _refusal("sdxl", adapter("sd15"))
    assert "does not support IP-Adapters" in _refusal("flux", adapter("sd15"))
    gone = IpAdapterSpec(source=str(tmp_path), file="gone.safetensors")
    assert "does not exist" in _refusal("sd15", gone)
    assert "pins no revision" in _refusal("sd15", IpAdapterSpec(source="a/b", file=gone.file))
    (tmp_path / "gone.safetensors").write_bytes(b"\x80\x04\x95pickled weights")
    assert "not a safetensors file" in _refusal("sd15", gone)
    shutil.copy(Path(adapter("sd15").source) / "ip-adapter.safetensors", tmp_path / gone.file)
    assert "image_encoder is missing" in _refusal("sd15", gone)


def test_an_adapter_wants_attention_as_it_is() -> None:
    with pytest.raises(ValueError, match="cannot be combined with fuse_qkv"):
        ModelSpec(name="sd", source="x", fuse_qkv=True, ip_adapter=adapter("sd15"))

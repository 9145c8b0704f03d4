"""Weighted and long prompts: equal to diffusers given the same embeddings, and independent of
neighbours."""

import dataclasses
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from shared.core.errors import InvalidInput
from shared.core.schedulers import DIFFUSION_SCHEDULERS
from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import TOYS
from tests.unit.engine.reference import reference
from tests.unit.engine.toys import request, scheduler_of, toy_backend, toy_folder
from worker.engine.interface import ImageRequest
from worker.engine.prompts import MOST_CHUNKS, Chunk, ChunkReader

FAMILIES = ("sd15", "sd21", "sdxl", "lcm")
WEIGHTED: dict[str, Any] = {"prompt_syntax": "weighted"}
LONG: dict[str, Any] = {"long_prompt": True}
MANY = " ".join("a" * 100)
"""A hundred tokens."""
PROMPTS: list[dict[str, Any]] = [
    {},
    {"prompt": "a (red:1.4) [fox]", **WEIGHTED},
    {"prompt": MANY, **LONG},
    {"prompt": f"{MANY} {MANY}", **LONG},
    {"prompt": "snow", "negative_prompt": MANY, **LONG},
    {"prompt": "a (red:1.4) fox BREAK (snow:0.5)", **WEIGHTED, **LONG},
]


def asked_of(family: str, **changes: Any) -> ImageRequest:
    more: dict[str, Any] = {} if family == "lcm" else {"negative_prompt": "blurry"}
    return request(**{"scheduler": scheduler_of(family), **more, **changes})


Part = list[tuple[str, float]]


def embeddings(family: str, parts: list[Part]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What diffusers makes of each part, its pieces multiplied by their weights.

    The pieces must be whole words, so that they are the same tokens alone and together.
    """
    pipeline = reference(toy_folder(family)).pipeline
    made = []
    for part in parts:
        encoded = pipeline.encode_prompt(
            prompt=" ".join(text for text, _ in part),
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        tokens, at = encoded[0].clone(), 1
        for text, weight in part:
            count = len(pipeline.tokenizer(text, add_special_tokens=False).input_ids)
            tokens[:, at : at + count] *= weight
            at += count
        made.append((tokens, encoded[2] if family == "sdxl" else None))
    return torch.cat([tokens for tokens, _ in made], dim=1), made[0][1]


def assert_equal_to_diffusers(
    family: str, asked: ImageRequest, parts: list[Part], negative: list[Part] | None
) -> None:
    tokens, pooled = embeddings(family, parts)
    more: dict[str, Any] = {"prompt": None, "prompt_embeds": tokens}
    if pooled is not None:
        more["pooled_prompt_embeds"] = pooled
    if family != "lcm":
        tokens, pooled = embeddings(family, negative or [[("", 1.0)]])
        more |= {"negative_prompt": None, "negative_prompt_embeds": tokens}
        if pooled is not None:
            more["negative_pooled_prompt_embeds"] = pooled
    made = make_alone(toy_backend(family, 1), asked)
    expected = reference(toy_folder(family))
    latents, pixels = expected.latents_and_pixels(asked, more)
    assert torch.equal(made.latents, latents)
    assert np.array_equal(made.pixels, pixels)


BLURRY: Part = [("blurry", 1.0)]
EMPTY: Part = [("", 1.0)]
FOX: Part = [("a", 1.0), ("red", 1.4), ("fox", 1 / 1.1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weighted_row_equals_diffusers(family: str) -> None:
    negative = {"negative_prompt": "(blurry:2)"} if family != "lcm" else {}
    asked = asked_of(family, prompt="a (red:1.4) [fox]", **WEIGHTED, **negative)
    assert_equal_to_diffusers(family, asked, [FOX], [[("blurry", 2.0)]])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_row_equals_diffusers(family: str) -> None:
    """The negative prompt is padded to as many chunks."""
    halves: list[Part] = [[(" ".join("a" * 75), 1.0)], [(" ".join("a" * 25), 1.0)]]
    asked = asked_of(family, prompt=MANY, **LONG)
    assert_equal_to_diffusers(family, asked, halves, [BLURRY, EMPTY])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_longer_negative_prompt_pads_the_prompt(family: str) -> None:
    asked = asked_of(
        family, prompt="a fox", negative_prompt="dog BREAK (red:2)", **WEIGHTED, **LONG
    )
    negative: list[Part] = [[("dog", 1.0)], [("red", 2.0)]]
    assert_equal_to_diffusers(family, asked, [[("a fox", 1.0)], EMPTY], negative)


def test_no_negative_prompt_is_as_long_too() -> None:
    """XL's toy has zeros for none, the others an empty text."""
    for family in ("sd15", "sdxl"):
        asked = asked_of(
            family, prompt="a fox BREAK snow", negative_prompt=None, **WEIGHTED, **LONG
        )
        backend = toy_backend(family, 1)
        row, _ = backend.prepare(asked, backend.shape_of(asked))
        shapes = {half: each["tokens"].shape for half, each in row.conditions.items()}
        assert shapes["negative"] == shapes["positive"]
        assert shapes["positive"][1] == 154


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_one_and_short_long_prompts_are_plain_ones(family: str) -> None:
    """And so they share a batch with them."""
    backend = toy_backend(family, 1)
    plain = make_alone(backend, asked_of(family, prompt="a red fox, snow"))
    for reading in (WEIGHTED, LONG, WEIGHTED | LONG):
        asked = asked_of(family, prompt="a red fox, snow", **reading)
        assert torch.equal(make_alone(backend, asked).latents, plain.latents)
        assert backend.shape_of(asked) == backend.shape_of(asked_of(family))
    marks = make_alone(backend, asked_of(family, prompt="a (red:1.5) fox, snow"))
    weighted = make_alone(backend, asked_of(family, prompt="a (red:1.5) fox, snow", **WEIGHTED))
    assert not torch.equal(marks.latents, plain.latents)  # where weights are not asked for
    assert len({x.latents.numpy().tobytes() for x in (plain, marks, weighted)}) == 3


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_the_same_among_plain_weighted_and_long_ones(family: str) -> None:
    backend = toy_backend(family, 4)
    schedulers = ("lcm",) if family == "lcm" else tuple(DIFFUSION_SCHEDULERS)
    crowd = PROMPTS
    if family == "lcm":
        crowd = [fields for fields in PROMPTS if "negative_prompt" not in fields]
    observed = crowd if family == "sd15" else (crowd[1], crowd[-1])
    for seed, fields in enumerate(observed):
        asked = asked_of(family, steps=5, **fields)
        alone = make_alone(backend, asked)
        crowded = make_among_others(backend, asked, Random(seed), schedulers, fields=crowd)
        assert torch.equal(crowded.latents, alone.latents)
        assert np.array_equal(crowded.pixels, alone.pixels)


# --- chunks and what is cut -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> ChunkReader:
    return ChunkReader(reference(toy_folder("sd15")).pipeline.tokenizer)


def lengths(chunks: tuple[Chunk, ...]) -> list[int]:
    """Without the two marks."""
    return [chunk.length - 2 for chunk in chunks]


def test_a_full_chunk_ends_behind_a_near_comma(reader: ChunkReader) -> None:
    near = " ".join("a" * 60) + ", " + MANY
    far = " ".join("a" * 50) + ", " + MANY
    assert lengths(reader.read(near, "plain", True).chunks) == [61, 75, 25]
    assert lengths(reader.read(far, "plain", True).chunks) == [75, 75, 1]
    assert lengths(reader.read("a BREAK a a BREAK", "weighted", True).chunks) == [1, 2]


def test_what_is_cut_is_told_without_marks(reader: ChunkReader) -> None:
    assert reader.read(MANY, "plain", True).cut is None
    tail = "the (last:1.2) words"
    read = reader.read(f"({' '.join('a' * 75)}) {tail}", "weighted", False)
    assert (lengths(read.chunks), read.cut) == ([75], "the last words")
    endless = " ".join("a" * (75 * MOST_CHUNKS)) + " " + tail
    read = reader.read(endless, "weighted", True)
    assert (len(read.chunks), read.cut) == (MOST_CHUNKS, "the last words")
    near_comma = " ".join("a" * 60) + ", " + " ".join("a" * 14) + " end"
    assert lengths(reader.read(near_comma, "plain", False).chunks) == [75]
    assert reader.read(near_comma, "plain", False).cut == "end"


def test_the_backend_tells_what_is_cut() -> None:
    backend = toy_backend("sdxl", 1)
    assert backend.truncated_part(f"{MANY} end") is not None
    assert backend.truncated_part(f"{MANY} end", "plain", True) is None
    cut = backend.truncated_part(f"({MANY}) end", "weighted", False)
    assert cut is not None
    assert cut.endswith("a end")


@pytest.mark.parametrize("family", ["flux", "qwen", "pixart"])
def test_models_without_clips_tokens_alone_refuse_both(family: str) -> None:
    backend = toy_backend(family, 1)
    scheduler = scheduler_of(family)
    with pytest.raises(InvalidInput, match="does not support prompt weights"):
        backend.check(request(scheduler=scheduler, **WEIGHTED))
    with pytest.raises(InvalidInput, match="does not support long prompts"):
        backend.check(request(scheduler=scheduler, **LONG))


def test_a_malformed_prompt_fails_alone() -> None:
    with pytest.raises(InvalidInput, match="never closed"):
        toy_backend("sd15", 1).check(request(prompt="a (fox", **WEIGHTED))


# --- SD3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_weights_of_sd3_are_those_of_clip_and_one_row_equals_diffusers(family: str) -> None:
    pipeline = reference(toy_folder(family)).pipeline
    spec, guidance = TOYS[family].spec, TOYS[family].guidance

    @torch.no_grad()  # or the bits are others
    def encoded(parts: Part) -> tuple[torch.Tensor, torch.Tensor]:
        text = " ".join(text for text, _ in parts)
        tokens, _, pooled, _ = pipeline.encode_prompt(
            text, None, None, device="cpu", do_classifier_free_guidance=False
        )
        tokens, at = tokens.clone(), 1
        for text, weight in parts:
            count = len(pipeline.tokenizer(text, add_special_tokens=False).input_ids)
            tokens[:, at : at + count] *= weight
            at += count
        return tokens, pooled

    asked = request(
        scheduler="flow-euler",
        guidance_scale=guidance,
        prompt="a (red:1.4) [fox]",
        negative_prompt="(blurry:2)",
        **WEIGHTED,
    )
    tokens, pooled = encoded(FOX)
    negative, negative_pooled = encoded([("blurry", 2.0)])
    more = {
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": tokens,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": negative,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    made = make_alone(toy_backend(family, 1, **spec), asked)
    assert torch.equal(made.latents, reference(toy_folder(family)).latents(asked, more))
    plain = dataclasses.replace(asked, prompt="a red fox", prompt_syntax="plain")
    assert not torch.equal(made.latents, make_alone(toy_backend(family, 1, **spec), plain).latents)


def test_a_row_of_sd3_is_the_same_among_plain_and_weighted_ones() -> None:
    backend = toy_backend("sd3", 4)
    asked = request(scheduler="flow-euler", prompt="a (red:1.4) [fox]", **WEIGHTED)
    alone = make_alone(backend, asked)
    crowded = make_among_others(
        backend,
        asked,
        Random(1),
        ("flow-euler",),
        fields=[{}, {"prompt": "a (fox:2)", **WEIGHTED}],
    )
    assert torch.equal(crowded.latents, alone.latents)


def test_marks_are_no_part_of_what_sd3_cuts_off() -> None:
    backend = toy_backend("sd3", 1)
    long = "fox " * 300
    assert backend.truncated_part("a (fox:1.2)", "weighted") is None
    cut = backend.truncated_part(f"(a:1.1) {long}", "weighted")
    assert cut == backend.truncated_part(f"a {long}")
    assert cut

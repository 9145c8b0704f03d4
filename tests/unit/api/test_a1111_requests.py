"""The web UI's requests as jobs: samplers, LoRAs, what is off, settings as text."""

import time
from typing import Any

import pytest

from api.compat.a1111.errors import retell
from api.compat.a1111.requests import (
    check_supported,
    close_brackets,
    find_model,
    image_reference,
    model_of,
    read_networks,
    to_submission,
)
from api.compat.a1111.samplers import LABELS, SAMPLERS, find_scheduler
from api.compat.a1111.schemas import Img2Img, Txt2Img
from api.compat.a1111.service import read_parameters
from api.core.error_catalogue import CATALOGUE
from api.core.errors import Problem
from shared.core.families import FAMILIES
from shared.core.model_catalog import ModelCatalog, ModelSpec
from shared.core.prompt_weights import parse_weights
from shared.core.schedulers import SCHEDULERS

TURBO = ModelSpec(name="turbo", source="a/b", aliases=("flux/dev",))
CATALOG = ModelCatalog(model=(TURBO, ModelSpec(name="sd1.5", source="a/b")))


@pytest.mark.parametrize(
    ("sampler", "schedule", "family", "scheduler"),
    [
        ("Euler a", None, "sd", "euler-ancestral"),
        ("euler A", "Automatic", "sdxl", "euler-ancestral"),
        *(("k_euler", "automatic", "sd", "euler"), ("Euler", "Uniform", None, "euler")),
        *(("Euler", None, "flux", "flow-euler"), ("Heun", None, "sd3", "flow-heun")),
        *(("DPM++ 2M", None, "sd", "dpmpp-2m-karras"), ("DPM++ 2M", "uniform", "sd", "dpmpp-2m")),
        ("DPM++ 2M Karras", None, "sd", "dpmpp-2m-karras"),
        ("DPM++ 2M", None, "sana", "flow-dpmpp-2m"),
        *(("DPM++ 2M Karras", "karras", "sd", "dpmpp-2m-karras"), ("PLMS", "", "sd", "pndm")),
        *((None, None, "sd", None), ("", "Automatic", "flux", None), ("LCM", None, "lcm", "lcm")),
    ],
)  # fmt: skip
def test_samplers_are_our_schedulers(
    sampler: str | None, schedule: str | None, family: str | None, scheduler: str | None
) -> None:
    assert find_scheduler(sampler, schedule, family) == scheduler


@pytest.mark.parametrize(
    ("sampler", "schedule", "family"),
    [
        *(("Euler a", None, "flux"), ("DPM++ 2M", "Karras", "sana"), ("DPM2", None, "sd")),
        *(("Euler", "Karras", "sd"), ("Euler Karras", None, "sd"), (None, "Karras", "sd")),
        *(("DPM++ 2M Karras", "Uniform", "sd"), ("x" * 9999, "y" * 9999, None)),
    ],
)
def test_others_are_refused_with_what_there_is(
    sampler: str | None, schedule: str | None, family: str | None
) -> None:
    with pytest.raises(Problem) as refused:
        find_scheduler(sampler, schedule, family)
    assert refused.value.errors[0].code == "unknown_sampler"
    assert "Euler Uniform" in refused.value.errors[0].message or family == "sana"
    assert len(refused.value.errors[0].message) < 1000


def test_every_scheduler_has_a_sampler() -> None:
    assert set(LABELS) == set(SCHEDULERS)
    for family, facts in FAMILIES.items():
        for scheduler in facts.schedulers:
            assert find_scheduler(*LABELS[scheduler], family) == scheduler
        for one in SAMPLERS:
            assert len([name for name in one.uniform if name in facts.schedulers]) <= 1


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a cat", "a cat", []),
        ("<lora:grain:0.8> a cat", "a cat", [("grain", 0.8)]),
        ("a <lora:a:-1><lyco:b> cat", "a  cat", [("a", -1.0), ("b", 1.0)]),
        ("a <lora:a:0.5:0.5>", "a", [("a", 0.5)]),
        ("1 < 2 > 0, <3, <b>", "1 < 2 > 0, <3, <b>", []),
    ],
)
def test_loras_leave_the_prompt(prompt: str, text: str, loras: list[tuple[str, float]]) -> None:
    found = read_networks(prompt)
    assert found == (text, [{"name": name, "scale": scale} for name, scale in loras])


@pytest.mark.parametrize(
    "script",
    [{}, [], None, {"args": []}, {"args": [False, {"x": 1}]}, {"args": [{"enabled": False}]}],
)
def test_scripts_that_are_off_pass(script: Any) -> None:
    check_supported(Txt2Img(alwayson_scripts={"X": script}))


@pytest.mark.parametrize("script", [{"args": [True]}, {"args": {"x": 1}}, 7, {"args": [{"a": 1}]}])
def test_scripts_that_are_on_do_not(script: Any) -> None:
    with pytest.raises(Problem, match="validation_failed"):
        check_supported(Txt2Img(alwayson_scripts={"X": script}))


@pytest.mark.parametrize(
    "name",
    ["turbo", "flux/dev", "turbo.safetensors", "turbo.ckpt [0a1b2c3d4e]", "turbo [0a1b2c]"],
)
def test_models_go_by_file_names_too(name: str) -> None:
    assert find_model(name, CATALOG) is TURBO
    assert find_model("sd1.5", CATALOG).name == "sd1.5"
    with pytest.raises(Problem):
        find_model(f"no-{name}", CATALOG)


LONG = "." * 1_000_000


@pytest.mark.parametrize(
    "fields",
    [
        {"override_settings": {"sd_model_checkpoint": LONG}},
        {"override_settings": {"sd_model_checkpoint": [LONG]}},
        {"override_settings": {"samples_format": LONG}},
        {"alwayson_scripts": {"controlnet": {"args": [{"model": LONG, "image": "AA"}]}}},
        {"alwayson_scripts": {"controlnet": {"args": [{"module": [LONG], "image": "AA"}]}}},
        {"prompt": "<lora:a:1>" * 100_000},
        {"negative_prompt": "(" * 1_000_000},
    ],
)
def test_names_and_prompts_of_megabytes_are_not_read(fields: dict[str, Any]) -> None:
    """Regular expressions let nobody else on, not even from a thread."""
    body = Txt2Img.model_validate({"prompt": "p", **fields})
    began = time.thread_time()
    with pytest.raises(Problem) as refused:
        to_submission(body, find_model(model_of(body) or "turbo", CATALOG), "sd")
    assert time.thread_time() - began < 0.05
    assert refused.value.errors[0].code in {"malformed_name", "unsupported_parameter", "too_long"}


def test_what_is_no_reference_is_base64() -> None:
    for given in ("data:image/png;base64,AA", "https://a/b", "img_00000000000000000000000000"):
        assert image_reference(f" {given}") == given
    assert image_reference("img_AAAA") == "data:image/png;base64,img_AAAA"


@pytest.mark.parametrize(
    ("family", "weighted", "long"),
    [
        *(("sd", True, True), ("sdxl", True, True), ("lcm", True, True)),
        *(("simulated", True, True), ("flux", False, False), ("flow", False, False)),
    ],
)
def test_prompts_are_weighted_and_long_where_they_can_be(
    family: str, weighted: bool, long: bool
) -> None:
    job = to_submission(Txt2Img(prompt="a (cat:1.2)", negative_prompt="[dog"), TURBO, family)
    assert job.prompt_syntax == ("weighted" if weighted else "plain")
    assert job.long_prompt is long
    assert job.prompt == "a (cat:1.2)"
    assert job.negative_prompt == ("[dog]" if weighted else "[dog")
    unknown = [to_submission(Txt2Img(prompt=text), TURBO, None) for text in ("a cat", "a (cat)")]
    assert [one.prompt_syntax for one in unknown] == ["plain", "weighted"]


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        *(("a (cat", "a (cat)"), ("a ((cat) [dog", "a ((cat) [dog)]"), (":) (:", ":) (:)")),
        *((r"a \(cat", r"a \(cat"), ("(a:1.2) b", "(a:1.2) b"), (r"a \\(cat", r"a \\(cat)")),
    ],
)
def test_open_brackets_are_closed_at_the_end(prompt: str, closed: str) -> None:
    assert close_brackets(prompt) == closed
    parse_weights(closed)


def test_defaults_are_the_models() -> None:
    fields = to_submission(Txt2Img(prompt="p"), TURBO, None).model_dump(exclude_unset=True)
    assert fields == {
        "prompt": "p",
        "long_prompt": False,
        "num_images": 1,
        "model": "turbo",
        "loras": [],
        "output_format": "png",
        "metadata": {"api": "a1111"},
        "previews": True,
    }
    image = Img2Img(prompt="p", init_images=["AA"], resize_mode=2)
    submission = to_submission(image, TURBO, None)
    assert (submission.strength, submission.resize_mode) == (0.75, "fit")


def test_settings_are_read_from_text() -> None:
    text = (
        'a\nb\nNegative prompt: c\nSteps: 4, Sampler: Euler a, Lora hashes: "x: 1, y: 2", Seed: 1'
    )
    assert read_parameters(text) == {
        "Prompt": "a\nb",
        "Negative prompt": "c",
        "Steps": "4",
        "Sampler": "Euler a",
        "Lora hashes": '"x: 1, y: 2"',
        "Seed": "1",
    }
    assert read_parameters("a poem, of: little") == {}
    assert read_parameters("") == {}


def test_settings_of_spaces_take_no_time() -> None:
    """They are a stranger's, and the GIL is held: quadratic, it would be seconds or hours."""
    facts = "Steps: 4, Seed: 1, Size: 64x64"
    began = time.process_time()
    for text in ("x" + 200_000 * " " + "x", facts + 200_000 * " " + "x"):
        assert read_parameters(text) == {}
    for filler in (" ", "x", 'x: "', ":", "x:"):
        read_parameters((filler * 4096)[:4096])
    assert time.process_time() - began < 1


@pytest.mark.parametrize("strength", [0, 1e-320, 0.0009])
def test_steps_are_not_divided_by_next_to_nothing(strength: float) -> None:
    for body in (
        Txt2Img(prompt="p", enable_hr=True, denoising_strength=strength),
        Img2Img(prompt="p", init_images=["AA"], denoising_strength=strength),
    ):
        with pytest.raises(Problem) as refused:
            to_submission(body, TURBO, None)
        [error] = refused.value.errors
        assert (error.pointer, error.code) == ("/denoising_strength", "strength_too_low")
    to_submission(Txt2Img(prompt="p", denoising_strength=strength), TURBO, None)


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_problem_has_the_web_uis_shape(code: str) -> None:
    told = retell(Problem(code, "why"))
    assert set(told.members) == {"error", "body"}
    assert told.status == (504 if code == "job_not_done" else CATALOGUE[code].status)

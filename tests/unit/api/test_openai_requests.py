"""OpenAI's requests as jobs: which model, how many steps, what a form says."""

from typing import Any

import pytest
from pydantic import ValidationError

from api.app import create_app
from api.compat.openai.errors import retell
from api.compat.openai.schemas import EXTENSIONS, ImageEdit, ImageGeneration
from api.compat.openai.service import find_model, steps_of, to_submission
from api.core.error_catalogue import CATALOGUE
from api.core.errors import Problem
from api.jobs.submission import JobSubmission
from shared.core.model_catalog import IpAdapterSpec, ModelCatalog, ModelSpec, QualitySteps
from shared.core.settings import Settings

TURBO = ModelSpec(name="turbo", source="a/b", default_steps=4, max_steps=10)
LARGE = ModelSpec(
    name="large",
    source="a/b",
    aliases=("dall-e-3", "flux/dev"),
    quality_steps=QualitySteps(low=12, max=90),
)
LOOKING = ModelSpec(
    name="looking", source="a/b", ip_adapter=IpAdapterSpec(source="c", file="adapter.safetensors")
)
CATALOG = ModelCatalog(model=(TURBO, LARGE, LOOKING))


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        *((None, TURBO), ("turbo", TURBO), ("large", LARGE), ("dall-e-3", LARGE)),
        *(("flux/dev", LARGE), ("dall-e-2", TURBO), ("gpt-image-1", TURBO)),
        ("gpt-image-2.5-sunburst-2026-09-08", TURBO),
    ],
)
def test_the_first_model_has_the_names_that_nobody_claims(
    name: str | None, spec: ModelSpec
) -> None:
    assert find_model(name, CATALOG) is spec


@pytest.mark.parametrize(
    ("quality", "turbo", "large"),
    [
        *((None, None, None), ("auto", None, None), ("standard", None, None)),
        *(("low", 2, 12), ("high", 6, 38), ("hd", 6, 38), ("xhigh", 8, 50), ("max", 10, 90)),
    ],
)
def test_quality_is_steps_within_the_models_limit(
    quality: str | None, turbo: int | None, large: int | None
) -> None:
    assert (steps_of(quality, TURBO), steps_of(quality, LARGE)) == (turbo, large)


def test_every_field_of_a_job_can_be_had() -> None:
    assert set(JobSubmission.model_fields) - EXTENSIONS == {
        *("prompt", "model", "num_images", "width", "height")
    }
    body = ImageGeneration.model_validate(
        {
            "prompt": "a cat",
            "model": "dall-e-3",
            "n": 2,
            "size": "640x512",
            "quality": "low",
            "user": "u",
            "num_inference_steps": 30,
            "cfg_scale": 3,
            "seed": 5,
            "negative_prompt": None,
            "metadata": {"a": "b"},
        }
    )
    assert to_submission(body, CATALOG).model_dump(exclude_unset=True) == {
        "prompt": "a cat",
        "model": "large",
        "num_images": 2,
        "width": 640,
        "height": 512,
        "steps": 30,
        "guidance_scale": 3.0,
        "seed": 5,
        "metadata": {"user": "u", "a": "b"},
    }


def test_an_edit_starts_from_its_first_image_and_looks_at_the_others() -> None:
    edit = ImageEdit(prompt="p", image="img_1", input_fidelity="low")
    submission = to_submission(edit, CATALOG)
    assert (submission.init_image, submission.strength) == ("img_1", 0.75)
    exact = ImageEdit.model_validate(
        {"prompt": "p", "image": ["x"], "strength": 0.2, "input_fidelity": "low"}
    )
    assert to_submission(exact, CATALOG).strength == 0.2
    urls = [{"image_url": "x"}, {"image_url": "y"}]
    for images in ({"image": ["x", "y"]}, {"image": "y", "init_image": "x"}, {"images": urls}):
        several = ImageEdit.model_validate({"prompt": "p", "model": "looking", **images})
        submission = to_submission(several, CATALOG)
        assert submission.init_image == "x"
        assert [reference.image for reference in submission.references] == ["y"]


@pytest.mark.parametrize("images", [{}, {"image": []}, {"images": []}, {"init_image": None}])
def test_an_edit_without_an_image_is_refused(images: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Give an image"):
        ImageEdit.model_validate({"prompt": "p", **images})


def test_an_edit_has_one_image_more_than_a_job_has_references() -> None:
    looking = {"prompt": "p", "model": "looking"}
    edit = ImageEdit.model_validate({**looking, "image": ["x", "y", "z"]})
    assert len(to_submission(edit, CATALOG).references) == 2
    with pytest.raises(Problem):
        to_submission(edit.model_copy(update={"image": ["x", "y", "z", "w"]}), CATALOG)
    with pytest.raises(Problem, match="turbo does not support others"):
        to_submission(edit.model_copy(update={"model": "turbo"}), CATALOG)


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_problem_has_openais_shape(code: str) -> None:
    told = retell(Problem(code))
    assert set(told.members["error"]) == {"message", "type", "param", "code"}
    status = 504 if code == "job_not_done" else CATALOGUE[code].status
    assert told.status == (400 if status == 422 else status)
    assert told.members["error"]["message"]
    is_final = told.headers == {"x-should-retry": "false"}
    assert is_final == (code in ("generation_failed", "job_stopped", "job_not_done"))


@pytest.mark.parametrize(
    ("seconds", "code"), [("10", "rate_limit_exceeded"), ("3600", "insufficient_quota")]
)
def test_a_quota_is_spent_when_no_retry_waits_so_long(seconds: str, code: str) -> None:
    told = retell(Problem("gpu_seconds_exceeded", headers={"Retry-After": seconds}))
    assert (told.status, told.members["error"]["code"]) == (429, code)
    assert ("x-should-retry" in told.headers) == (code == "insufficient_quota")


COMPATIBLE = {"openai": "/openai/", "a1111": "/sdapi/", "huggingface": "/hf"}


@pytest.mark.parametrize("off", [None, *COMPATIBLE])
def test_a_setting_turns_it_off(off: str | None) -> None:
    """And the others stay, those of the other standards, too."""
    switches: Any = {f"compat_{name}": name != off for name in COMPATIBLE}
    settings = Settings(
        database_url="postgresql://darkroom:a-long-enough-password@127.0.0.1/none",
        redis_url="redis://:a-long-enough-password@127.0.0.1/0",
        **switches,
    )
    paths = create_app(settings).openapi()["paths"]
    for name, path in COMPATIBLE.items():
        assert any(one.startswith(path) for one in paths) is (name != off)
    assert "/v1/images/{image_id}" in paths

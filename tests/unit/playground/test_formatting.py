"""Errors read plainly and give advice, and no user's text is drawn as Markdown."""

import re
from datetime import UTC, datetime

import pytest

from darkroom import errors
from darkroom.errors import FieldError, api_error
from darkroom.playground import formatting
from darkroom.types.jobs import ErrorInfo, Job


def problem(code: str, status: int, **document: object) -> errors.APIStatusError:
    told = {"code": code, "title": "A title", "request_id": "01ab", **document}
    return api_error(status, told, {}, None)


def job(state: str, error: ErrorInfo | None = None) -> Job:
    return Job(
        id="job_1",
        kind="txt2img",
        state=state,
        sequence=1,
        model="sim",
        session_id="s",
        prompt="p",
        seeds=(1,),
        created_at=datetime.now(UTC),
        width=64,
        height=64,
        steps=4,
        guidance_scale=4.0,
        scheduler="ddim",
        error=error,
    )


@pytest.mark.parametrize(
    ("error", "sentences"),
    [
        (
            problem("embedding_unavailable", 503),
            ["A title", "darkroom-server worker cpu", "request 01ab"],
        ),
        (problem("not_found", 404, detail="No image x"), ["A title", "reload the page"]),
        (problem("new_code", 418, detail="Short and stout"), ["A title", "Short and stout"]),
        (errors.APIConnectionError("refused"), ["Darkroom does not answer", "make run"]),
        (errors.ConfigurationError("no url"), ["does not know where Darkroom is", "DARKROOM_URL"]),
        (errors.APIResponseValidationError("is no JSON"), ["That did not work", "is no JSON"]),
    ],
)
def test_an_error_says_what_to_do(error: errors.DarkroomError, sentences: list[str]) -> None:
    told = formatting.explain(error)
    for sentence in sentences:
        assert sentence in told


def test_a_broken_rule_names_its_field() -> None:
    rule = {"pointer": "/guidance_scale", "code": "less", "message": "Input is *too* large"}
    error = problem("validation_failed", 422, errors=[rule])
    assert error.errors == (FieldError("less", "Input is *too* large", "/guidance_scale"),)
    told = formatting.explain(error)
    assert r"guidance scale\: Input is \*too\* large" in told


def test_a_server_that_asks_to_wait_is_quoted() -> None:
    error = api_error(429, {"code": "rate_limited"}, {}, 12.0)
    assert "Wait 12 s" in formatting.explain(error)


@pytest.mark.parametrize(
    ("state", "code", "sentence"),
    [
        ("failed", "out_of_memory", "smaller size"),
        ("failed", "unheard_of", "try again"),
        ("canceled", None, "Canceled."),
        ("expired", None, "deadline"),
    ],
)
def test_a_job_without_images_says_why(state: str, code: str | None, sentence: str) -> None:
    error = ErrorInfo(code=code, message="told *so*") if code else None
    told = formatting.explain_failure(job(state, error))
    assert sentence in told
    assert (r"told \*so\*" in told) == (code is not None)


def test_a_prompt_is_never_drawn_as_markdown() -> None:
    prompt = "![x](http://evil) :material/delete: **b** `c` $d$ <b>"
    told = formatting.escape(prompt)
    assert not re.findall(r"(?<!\\)[!\[\](:*`$<]", told)
    assert told.replace("\\", "") == prompt


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (45, "45 s"), (300, "5 minutes"), (5400, "1 hour and 30 minutes")],
)
def test_durations_are_rough(seconds: float, told: str) -> None:
    assert formatting.span(seconds) == told


@pytest.mark.parametrize("text", ["1. a list\n\n# big", "www.example.com", "&lt;b&gt;", "a_b_c @x"])
def test_no_markdown_comes_through(text: str) -> None:
    escaped = formatting.escape(text)
    assert "\n" not in escaped
    assert re.findall(r"(?<!\\)[.&@#_;]", escaped) == []

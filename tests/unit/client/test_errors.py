"""Every problem of the API has its class, and what is not known has that of its status."""

import re
from typing import Literal

import httpx2
import pytest

import darkroom
from api.core.error_catalogue import CATALOGUE
from darkroom import errors
from darkroom._problems import JOB_ADVICE
from darkroom._status_error import PROGRAM_WORDS, advice_in
from darkroom.errors import api_error
from shared.core.errors import JOB_ERRORS


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_has_its_class(code: str) -> None:
    status = CATALOGUE[code].status
    error = api_error(status, {"code": code, "request_id": "r-1"}, {}, 2.0)
    assert type(error).known_code == code
    assert isinstance(error, errors.BY_STATUS[status])
    assert (error.code, error.status, error.request_id, error.retry_after) == (
        *(code, status, "r-1", 2.0),
    )
    assert (error.advice, error.retryable) == (CATALOGUE[code].advice, CATALOGUE[code].retryable)
    assert getattr(darkroom, type(error).__name__) is type(error)


@pytest.mark.parametrize("program", ["cli", "playground"])
def test_a_program_of_the_client_gives_the_same_advice_in_its_own_words(
    program: Literal["cli", "playground"],
) -> None:
    everything = " ".join(f"{problem.advice} See {problem.see}." for problem in CATALOGUE.values())
    assert [phrase for phrase in PROGRAM_WORDS if phrase not in everything] == []
    for code, problem in CATALOGUE.items():
        for seconds in (2.0, None):
            error = api_error(problem.status, {"code": code}, {}, seconds)
            said = advice_in(program, error) or ""
            assert len(said) > 5
            assert not re.search(r"Retry-After|Authorization|on_error|(GET|POST) /", said), said


def test_a_wait_is_advised_in_seconds() -> None:
    overloaded = api_error(503, {"code": "overloaded"}, {}, 7.0)
    assert advice_in("cli", overloaded) == "Try again in 7 s."
    limited = api_error(429, {"code": "rate_limited"}, {}, 7.0)
    assert advice_in("cli", limited) == "Wait 7 s. Slow down. See `darkroom usage`."
    assert advice_in("playground", limited) == "Wait 7 s. Slow down."


def test_every_class_is_in_the_tree() -> None:
    families = {kind.__name__ for kind in errors.BY_STATUS.values() if not kind.known_code}
    own = {
        name
        for name, kind in vars(errors).items()
        if getattr(kind, "__module__", "") == errors.__name__ and isinstance(kind, type)
    }
    assert [name for name in families | own if name not in (errors.__doc__ or "")] == []


def test_no_class_is_for_a_code_that_does_not_exist() -> None:
    assert set(errors.BY_CODE) == set(CATALOGUE)


@pytest.mark.parametrize("code", sorted(JOB_ERRORS))
def test_every_reason_why_a_job_fails_has_its_advice(code: str) -> None:
    assert JOB_ADVICE[code] == JOB_ERRORS[code].advice != ""


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (429, True), (500, False), (502, True), (503, True)]
)
def test_a_newer_code_can_be_retried_by_its_status(status: int, retryable: bool) -> None:
    assert api_error(status, {"code": "from_the_future"}, {}, None).retryable is retryable


def test_a_rejected_batch_leads_to_its_report() -> None:
    answer = {"location": "/v1/batches/batch_1"}
    rejected = api_error(422, {"code": "batch_rejected"}, answer, None)
    assert isinstance(rejected, errors.BatchRejected)
    assert rejected.batch_id == "batch_1"
    assert api_error(422, {"code": "validation_failed"}, answer, None).batch_id is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (418, errors.APIStatusError),
        (422, errors.UnprocessableEntityError),
        (429, errors.RateLimitError),
        (502, errors.InternalServerError),
        (503, errors.ServiceUnavailableError),
    ],
)
def test_a_newer_code_is_the_class_of_its_status(status: int, kind: type[Exception]) -> None:
    assert type(api_error(status, {"code": "from_the_future"}, {}, None)) is kind


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"[]", b'{"errors": 3}', b""])
def test_a_proxy_that_answers_for_the_service_is_understood(body: bytes) -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(403, content=body))
    client = darkroom.Client("http://x", "drk_a_b", transport=answers)
    with client, pytest.raises(darkroom.PermissionDeniedError) as refused:
        client.jobs.get("job_1")
    assert refused.value.code == "unknown"


def test_html_where_json_should_be_is_said_to_be_that() -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200, html="<p>hello"))
    with darkroom.Client("http://x", "drk_a_b", transport=answers) as client:
        with pytest.raises(darkroom.APIResponseValidationError, match="not JSON"):
            client.jobs.get("job_1")
        with pytest.raises(darkroom.APIResponseValidationError, match="not an event stream"):
            next(client.jobs.events("job_1"))


@pytest.mark.parametrize("job_id", ["", ".", ".."])
def test_no_id_leads_to_another_path(job_id: str) -> None:
    with (
        darkroom.Client("http://x", "drk_a_b") as client,
        pytest.raises(ValueError, match="neither an id"),
    ):
        client.jobs.get(job_id)

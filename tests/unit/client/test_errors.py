"""Every problem of the API has its class, and what is not known has that of its status."""

import httpx2
import pytest

import darkroom
from api.core.error_catalogue import CATALOGUE
from darkroom import errors
from darkroom.errors import api_error


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_has_its_class(code: str) -> None:
    status = CATALOGUE[code].status
    error = api_error(status, {"code": code, "request_id": "r-1"}, {}, 2.0)
    assert type(error).known_code == code
    family = errors.BY_STATUS[status]
    assert isinstance(error, family if family is not errors.InternalError else errors.ServerError)
    assert type(error).__name__ in (errors.__doc__ or "")
    assert (error.code, error.status, error.request_id, error.retry_after) == (
        *(code, status, "r-1", 2.0),
    )
    assert getattr(darkroom, type(error).__name__) is type(error)


def test_no_class_is_for_a_code_that_does_not_exist() -> None:
    assert set(errors.BY_CODE) == set(CATALOGUE)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, errors.NotFound),
        (409, errors.Conflict),
        (418, errors.ApiError),
        (422, errors.Unprocessable),
        (429, errors.TooManyRequests),
        (502, errors.ServerError),
        (503, errors.Unavailable),
    ],
)
def test_a_newer_code_is_the_class_of_its_status(status: int, kind: type[Exception]) -> None:
    assert type(api_error(status, {"code": "from_the_future"}, {}, None)) is kind


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"[]", b'{"errors": 3}', b""])
def test_a_proxy_that_answers_for_the_service_is_understood(body: bytes) -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(403, content=body))
    client = darkroom.Client("http://x", "drk_a_b", transport=answers)
    with client, pytest.raises(darkroom.Forbidden) as refused:
        client.jobs.get("job_1")
    assert refused.value.code == "unknown"


def test_html_where_json_should_be_is_said_to_be_that() -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200, html="<p>hello"))
    with darkroom.Client("http://x", "drk_a_b", transport=answers) as client:
        with pytest.raises(darkroom.UnexpectedAnswer, match="not JSON"):
            client.jobs.get("job_1")
        with pytest.raises(darkroom.UnexpectedAnswer, match="no event stream"):
            next(client.jobs.events("job_1"))


@pytest.mark.parametrize("job_id", ["", ".", ".."])
def test_no_id_leads_to_another_path(job_id: str) -> None:
    with darkroom.Client("http://x", "drk_a_b") as client, pytest.raises(ValueError, match="no id"):
        client.jobs.get(job_id)

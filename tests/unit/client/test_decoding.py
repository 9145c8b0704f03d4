"""Answers of older and newer servers can be read."""

import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rich.pretty import pretty_repr

from darkroom import APIResponseValidationError, Job, NewKey, OtherState, Queued
from darkroom.decoding import Document, decode

JOB: dict[str, Any] = {
    "id": "job_1",
    "kind": "txt2img",
    "state": "queued",
    "sequence": 0,
    "model": "demo",
    "session_id": "default",
    "prompt": "a cat",
    "seeds": [7],
    "width": 64,
    "height": 64,
    "steps": 4,
    "guidance_scale": 4,
    "scheduler": "ddim",
    "created_at": "2026-01-31T12:00:00Z",
    "queue_position": 3,
}


class Thing(Document, frozen=True, kw_only=True):
    """Something with a renamed field and a nested list."""

    size: int = msgspec.field(name="bytes")
    parts: "tuple[Part, ...]" = ()


class Part(Document, frozen=True, kw_only=True):
    """A part."""

    at: datetime | None = None


def test_steps_that_run_are_read_where_the_server_says_them() -> None:
    assert decode(Job, {**JOB, "executed_steps": 3}).executed_steps == 3
    assert decode(Job, JOB).executed_steps is None


def test_what_is_new_is_kept_aside() -> None:
    job = decode(Job, {**JOB, "mood": "good"})
    assert job.raw["mood"] == "good"
    assert job == decode(Job, JOB)


def test_what_an_older_server_leaves_out_has_its_default() -> None:
    job = decode(Job, JOB)
    assert (job.images, job.eta, job.metadata) == ((), None, {})
    assert job.created_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert isinstance(job.guidance_scale, float)
    assert job.status == Queued(3, None)


def test_a_state_that_is_not_known_is_no_error() -> None:
    job = decode(Job, {**JOB, "state": "dreaming"})
    assert job.status == OtherState("dreaming")
    assert not job.is_final


def test_nested_lists_and_other_names() -> None:
    thing = decode(
        Thing, {"bytes": 3, "parts": [{"at": None}, {"at": "2026-01-01T00:00:00+01:00"}]}
    )
    assert thing.size == 3
    assert thing.parts[1].at == datetime(2025, 12, 31, 23, tzinfo=UTC)


IMAGE: dict[str, Any] = {
    "id": "img_1",
    "seed": 7,
    "width": 64,
    "height": 64,
    "content_type": "image/png",
    "bytes": 10,
    "sha256": "ab",
    "url": "https://storage/secret",
}


def test_nested_documents_keep_what_they_were_made_from() -> None:
    answer = {**JOB, "images": [{**IMAGE, "receipt": {"seed": 7}}], "error": None}
    job = decode(Job, answer)
    assert job.images[0].raw["receipt"] == {"seed": 7}
    copy = pickle.loads(pickle.dumps(job))  # noqa: S301
    assert copy == job
    assert copy.images[0].raw == job.images[0].raw
    assert Job(**{**JOB, "seeds": (7,), "created_at": job.created_at}).raw == {}


@pytest.mark.parametrize("shown", [repr, pretty_repr])
def test_no_secret_is_in_a_repr(shown: Callable[[object], str]) -> None:
    job = decode(Job, {**JOB, "images": [IMAGE], "links": {"self": "https://x/secret"}})
    key = {"id": "k", "name": "n", "tenant": "t", "scopes": [], "created_at": JOB["created_at"]}
    for document in (job, decode(NewKey, {**key, "key": "drk_secret"})):
        assert "secret" not in shown(document)
        assert document.id in shown(document)


def test_what_cannot_be_read_names_its_place() -> None:
    with pytest.raises(APIResponseValidationError, match=r"`id` - at `\$.images\[1\]`"):
        decode(Job, {**JOB, "images": [IMAGE, {}]})


def test_refused_images_stand_apart() -> None:
    refused = {"state": "filtered", "index": 0, "seed": 7, "filter": "words", "reason": "No."}
    job = decode(Job, {**JOB, "images": [refused, IMAGE]})
    assert [image.id for image in job.images] == [IMAGE["id"]]
    assert job.images[0].raw == IMAGE
    assert [(one.index, one.reason) for one in job.images.filtered] == [(0, "No.")]
    again = pickle.loads(pickle.dumps(job))  # noqa: S301
    assert again.images.filtered == job.images.filtered
    assert decode(Job, JOB).images.filtered == ()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "text",
        {"id": "job_1"},
        {**JOB, "created_at": "yesterday"},
        {**JOB, "images": [1]},
        {**JOB, "images": None},
        {**JOB, "guidance_scale": "much"},
    ],
)
def test_something_else_is_said_to_be_that(answer: Any) -> None:
    with pytest.raises(APIResponseValidationError, match="not a Job"):
        decode(Job, answer)

"""Answers of older and newer servers can be read."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from darkroom import Job, OtherState, Queued, UnexpectedAnswer
from darkroom.decoding import Document, decode, wire

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


@dataclass(frozen=True, kw_only=True)
class Thing(Document):
    """Something with a renamed field and a nested list."""

    size: int = wire("bytes")
    parts: "tuple[Part, ...]" = ()


@dataclass(frozen=True, kw_only=True)
class Part(Document):
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
    with pytest.raises(UnexpectedAnswer, match="no Job"):
        decode(Job, answer)

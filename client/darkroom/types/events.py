"""What a job's event stream tells."""

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from darkroom.decoding import decode
from darkroom.errors import UnexpectedAnswer
from darkroom.types.jobs import Job


@dataclass(frozen=True)
class JobChanged:
    """The whole job: first in every stream, after each transition, and last."""

    id: str
    """What to give as `after` to go on behind this event; empty where there is none yet."""
    job: Job


@dataclass(frozen=True)
class ProgressMade:
    """A denoising step is done."""

    id: str
    image_index: int
    step: int
    steps: int
    fraction: float
    """Of this picture, 0 to 1."""
    job_fraction: float | None = None
    """Of the whole job, 0 to 1; None from older servers."""


@dataclass(frozen=True)
class PreviewMade:
    """A small picture of the work so far, for jobs that asked for `previews`."""

    id: str
    image_index: int
    content_type: str
    """`image/webp`"""
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class ImageMade:
    """One of the job's pictures is finished; the last `JobChanged` has all with their URLs."""

    id: str
    image_index: int
    seed: int
    image_id: str | None


JobEvent = JobChanged | ProgressMade | PreviewMade | ImageMade


def decode_event(kind: str, event_id: str, text: str) -> JobEvent | None:
    """The event, or None for a kind that this version does not know.

    Raises:
        UnexpectedAnswer: its data are not what this kind has.
    """
    try:
        data: dict[str, Any] = json.loads(text) if text else {}
        if kind == "job":
            return JobChanged(event_id, decode(Job, data))
        if kind == "progress":
            return ProgressMade(
                event_id,
                data["image_index"],
                data["step"],
                data["steps"],
                data["fraction"],
                data.get("job_fraction"),
            )
        if kind == "preview":
            picture = base64.b64decode(data["data"])
            return PreviewMade(event_id, data["image_index"], data["content_type"], picture)
        if kind == "image":
            return ImageMade(event_id, data["index"], data["seed"], data.get("id"))
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise UnexpectedAnswer(f"An event of kind {kind} cannot be read: {error}") from error
    return None

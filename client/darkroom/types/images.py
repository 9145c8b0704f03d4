"""Pictures, uploads, and receipts read back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from darkroom.decoding import Document, wire


@dataclass(frozen=True, kw_only=True)
class Image(Document):
    """A finished picture. Its URLs read it without a key, for some minutes."""

    id: str
    seed: int
    width: int
    height: int
    content_type: str
    byte_size: int = wire("bytes")
    sha256: str
    url: str = field(repr=False)
    thumbnail_url: str = field(default="", repr=False)
    index: int = 0
    """Its place in its job."""
    starred: bool = False
    job_id: str | None = None
    session_id: str | None = None
    model: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    gpu_seconds: float | None = None
    """Device time of this picture; None where the picture came as a part of its job."""
    created_at: datetime | None = None

    @property
    def file_name(self) -> str:
        """A name for its file: the id and the usual extension."""
        extension = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}
        return f"{self.id}.{extension.get(self.content_type, 'bin')}"


@dataclass(frozen=True, kw_only=True)
class Upload(Document):
    """A picture as it was kept: upright, RGB, PNG, without metadata."""

    id: str
    width: int
    height: int
    content_type: str
    byte_size: int = wire("bytes")
    sha256: str
    url: str = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Inspection(Document):
    """What a picture made by Darkroom says of itself."""

    receipt: Mapping[str, Any]
    stored: bool
    """Whether this very file is one of your tenant's pictures."""
    image: Image | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    """What to submit to make it again: `client.jobs.submit(**inspection.job)`."""
    notes: tuple[str, ...] = ()
    """What a submission cannot say, e.g. a missing initial image."""


@dataclass(frozen=True, kw_only=True)
class Deleted(Document):
    """What went. It cannot be brought back."""

    sessions: int = 0
    jobs: int = 0
    images: int = 0
    prompts: int = 0
    uploads: int = 0
    objects: int = 0
    objects_pending: bool = False
    """Storage did not answer: the remaining files are removed within minutes."""

"""Batches, their lines, and what came of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from darkroom.decoding import Document
from darkroom.types.images import Image
from darkroom.types.jobs import ErrorInfo, Job

FINAL_STATES = frozenset({"succeeded", "partial", "failed", "canceled", "expired"})


@dataclass(frozen=True, kw_only=True)
class Counts(Document):
    """How many jobs are in each state."""

    total: int
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageCounts(Document):
    """Pictures asked for, and pictures made."""

    total: int
    done: int


@dataclass(frozen=True, kw_only=True)
class Rate(Document):
    """Of the last minute."""

    jobs_per_second: float


@dataclass(frozen=True, kw_only=True)
class Batch(Document):
    """A batch as it stood when it was asked for."""

    id: str
    state: str
    """`validating`, `queued`, `running`, and then `succeeded`, `partial`, `failed`, `canceled`
    or `expired`."""
    sequence: int
    paused: bool
    cancel_requested: bool
    priority: int
    """0 to 9; among the key's batches a higher one goes first."""
    source: str
    on_error: str
    session_id: str | None = None
    models: tuple[str, ...] = ()
    lines: int
    invalid_lines: int
    counts: Counts
    images: ImageCounts
    cost: int
    """Width × height × steps, over all pictures."""
    fraction: float
    """Jobs that have ended, 0 to 1."""
    rate: Rate | None = None
    eta: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook_url: str | None = None
    start_deadline: datetime | None = None
    finish_deadline: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_final(self) -> bool:
        """Whether it has ended; only `retry_failed` changes it then."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, kw_only=True)
class BatchItem(Job):
    """One job of a batch, with its place in the file."""

    custom_id: str
    line: int


@dataclass(frozen=True, kw_only=True)
class BatchResult(Document):
    """A job of a batch that has ended."""

    custom_id: str
    line: int
    job_id: str
    state: str
    seeds: tuple[int, ...] = ()
    images: tuple[Image, ...] = ()
    """Their receipts are in `image.raw["receipt"]`."""
    error: ErrorInfo | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class BatchError(Document):
    """What validation found (`type` is `validation`), or a job without success (`job`)."""

    type: str
    line: int | None = None
    custom_id: str | None = None
    pointer: str | None = None
    job_id: str | None = None
    code: str
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finding(Document):
    """One error of the validation report."""

    line: int | None = None
    custom_id: str | None = None
    pointer: str | None = None
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Estimate(Document):
    """What the batch would take, from what the models' latest jobs took."""

    gpu_seconds: float
    jobs_of_evidence: int


@dataclass(frozen=True, kw_only=True)
class BatchDryRun(Document):
    """What a batch would be. Nothing was kept."""

    accepted: bool
    lines: int
    invalid_lines: int
    jobs: int
    images: int
    cost: int
    estimate: Estimate | None = None
    eta: datetime | None = None
    error_count: int = 0
    errors: tuple[Finding, ...] = ()
    """The first 20."""


@dataclass(frozen=True, kw_only=True)
class BatchFile(Document):
    """A file from which batches can be made; kept for a week."""

    id: str
    name: str
    byte_size: int = field(metadata={"wire": "bytes"})
    sha256: str
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class RetryResult(Document):
    """What a retry has set in motion."""

    retried: int
    batch: Batch

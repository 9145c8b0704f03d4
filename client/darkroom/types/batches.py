"""Batches, their lines and their results."""

from collections.abc import Mapping
from datetime import datetime

import msgspec

from darkroom.decoding import Document
from darkroom.types.images import Images
from darkroom.types.jobs import ErrorInfo, Job

__all__ = [
    "Batch",
    "BatchDryRun",
    "BatchError",
    "BatchFile",
    "BatchItem",
    "BatchResult",
    "Counts",
    "Estimate",
    "Finding",
    "ImageCounts",
    "PlannedLine",
    "Rate",
    "RetryResult",
    "TableColumn",
]

FINAL_STATES = frozenset({"succeeded", "partial", "failed", "canceled", "expired"})


class Counts(Document, frozen=True, kw_only=True):
    """How many jobs are in each state."""

    total: int
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0


class ImageCounts(Document, frozen=True, kw_only=True):
    """Images requested, and images made."""

    total: int
    done: int


class Rate(Document, frozen=True, kw_only=True):
    """Over the last minute."""

    jobs_per_second: float


class Batch(Document, frozen=True, kw_only=True):
    """A batch at the time of the answer."""

    hidden = ("links",)

    id: str
    name: str | None = None
    """As given, or the file's."""
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
    """Width × height × steps, over all images."""
    fraction: float
    """Jobs that have ended, 0 to 1."""
    rate: Rate | None = None
    eta: datetime | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    webhook_url: str | None = None
    start_deadline: datetime | None = None
    finish_deadline: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether it has ended; only `retry_failed` changes it then."""
        return self.state in FINAL_STATES


class BatchItem(Job, frozen=True, kw_only=True):
    """One job of a batch, with its line in the file."""

    custom_id: str
    line: int


class BatchResult(Document, frozen=True, kw_only=True):
    """A job of a batch that has ended."""

    custom_id: str
    line: int
    job_id: str
    state: str
    seeds: tuple[int, ...] = ()
    images: Images = Images()
    """Their receipts are in `image.raw["receipt"]`."""
    error: ErrorInfo | None = None
    finished_at: datetime | None = None


class BatchError(Document, frozen=True, kw_only=True):
    """A finding of validation (`type` is `validation`), or an unsuccessful job (`job`)."""

    type: str
    line: int | None = None
    custom_id: str | None = None
    pointer: str | None = None
    job_id: str | None = None
    code: str
    message: str | None = None


class Finding(Document, frozen=True, kw_only=True):
    """One error of the validation report."""

    line: int | None = None
    custom_id: str | None = None
    pointer: str | None = None
    code: str
    message: str


class Estimate(Document, frozen=True, kw_only=True):
    """Estimated cost of the batch, from the models' latest jobs."""

    gpu_seconds: float
    jobs_of_evidence: int


class TableColumn(Document, frozen=True, kw_only=True):
    """A column of a CSV file, or a key of JSON lines."""

    name: str
    example: str | None = None
    """The first value in it."""
    fields: tuple[str, ...] = ()
    """The fields of a job that it is."""


class PlannedLine(Document, frozen=True, kw_only=True):
    """A job as it would be queued."""

    line: int
    custom_id: str
    prompt: str
    negative_prompt: str | None = None
    model: str
    width: int
    height: int
    steps: int
    seeds: tuple[int, ...] = ()
    """Random ones are drawn again at submission."""


class BatchDryRun(Document, frozen=True, kw_only=True):
    """A preview of a batch. Nothing was stored."""

    accepted: bool
    lines: int
    invalid_lines: int
    jobs: int
    images: int
    refused_jobs: int = 0
    """Jobs whose prompt a filter refuses: they would fail, one by one."""
    cost: int
    estimate: Estimate | None = None
    eta: datetime | None = None
    error_count: int = 0
    errors: tuple[Finding, ...] = ()
    """The first 20."""
    columns: tuple[TableColumn, ...] = ()
    """Of a file."""
    first_jobs: tuple[PlannedLine, ...] = ()
    """The first 5."""


class BatchFile(Document, frozen=True, kw_only=True):
    """A file from which batches can be made; kept for a week."""

    id: str
    name: str
    byte_size: int = msgspec.field(name="bytes")
    sha256: str
    created_at: datetime


class RetryResult(Document, frozen=True, kw_only=True):
    """How many jobs a retry has queued again."""

    retried: int
    batch: Batch

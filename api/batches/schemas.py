"""What clients send and get for batches."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from api.batches.reading import MAX_LINES
from api.jobs.schemas import Job, MetadataKey, MetadataValue, Seconds, SessionId
from api.problems import RuleBroken
from api.request_model import RequestModel
from api.webhooks.schemas import BatchWebhook
from api.wire import AnswerModel, UtcTime

BatchStateName = Literal[
    "validating", "queued", "running", "succeeded", "partial", "failed", "canceled", "expired"
]
Priority = Annotated[int, Field(ge=0, le=9)]


class BatchOptions(RequestModel):
    """What holds for the whole batch. In a multipart body each is a form field of its name."""

    defaults: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of POST /v1/jobs for all lines; a line's own fields override them.",
    )
    on_error: Literal["reject", "skip"] = Field(
        default="reject",
        description="reject: one bad line refuses the file. skip: bad lines are only reported.",
    )
    templates: bool = Field(
        default=True,
        description="Whether `{a|b}` in prompts stands for several prompts; `\\{` is a brace.",
    )
    session_id: SessionId | None = Field(
        default=None, description="The session of every line that names none."
    )
    priority: Priority = Field(
        default=5, description="0 to 9; among your key's batches a higher one goes first."
    )
    start_within: Seconds | None = Field(
        default=None, description="Seconds; jobs that have not started by then expire."
    )
    finish_within: Seconds | None = Field(
        default=None, description="Seconds; jobs that have not finished by then expire."
    )
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(
        default_factory=dict, description="Of the batch: 16 keys of 64 characters, values of 512."
    )
    webhook: BatchWebhook | None = None

    @model_validator(mode="after")
    def _defaults_are_for_lines(self) -> Self:
        if "custom_id" in self.defaults:
            raise RuleBroken(
                "custom_id_in_defaults", "Each line needs its own custom_id.", "/defaults/custom_id"
            )
        return self


class BatchSubmission(BatchOptions):
    """A batch whose lines are in the request itself, or in a file that was uploaded before."""

    items: Annotated[list[Any], Field(max_length=MAX_LINES + 1)] | None = Field(
        default=None,
        description="1 to 50,000 lines: objects with fields of POST /v1/jobs and `custom_id`, "
        "`matrix` or `zip`; a plain string is a prompt.",
    )
    upload_id: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A file of POST /v1/batches/files, instead of items."
    )
    format: Literal["jsonl", "csv"] | None = Field(
        default=None, description="Of the uploaded file; default: by its name."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.items is None) == (self.upload_id is None):
            raise RuleBroken("one_source", "Give either items or upload_id.", "/items")
        if self.format is not None and self.upload_id is None:
            raise RuleBroken("format_without_file", "format is that of a file.", "/format")
        return self


class BatchUpdate(RequestModel):
    """What can be changed of a batch that has not ended."""

    priority: Priority


class Counts(AnswerModel):
    """How many jobs are in each state, counted in the ledger for this answer."""

    total: int
    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int
    expired: int


class ImageCounts(AnswerModel):
    """Pictures asked for, and pictures made."""

    total: int
    done: int


class Rate(AnswerModel):
    """The last minute."""

    jobs_per_second: float


class BatchLinks(AnswerModel):
    """Where to go on from a batch."""

    self: str
    items: str
    results: str
    errors: str
    archive: str
    contact_sheet: str
    cancel: str
    pause: str
    resume: str
    retry_failed: str


class Batch(AnswerModel):
    """A batch as it stands. What does not apply is null."""

    id: str
    state: BatchStateName
    sequence: int = Field(description="Counts the changes of the batch itself.")
    paused: bool
    cancel_requested: bool
    priority: int
    source: Literal["json", "jsonl", "csv"]
    on_error: Literal["reject", "skip"]
    session_id: str | None
    models: list[str]
    lines: int = Field(description="Lines read, without blank ones.")
    invalid_lines: int = Field(description="Lines that broke a rule; GET …/errors says which.")
    counts: Counts
    images: ImageCounts
    cost: int = Field(description="Width × height × steps that run, over all images.")
    fraction: float = Field(description="Jobs that have ended, 0 to 1.")
    rate: Rate | None
    eta: UtcTime | None = Field(description="null until there is evidence to say it from.")
    metadata: dict[str, str]
    webhook_url: str | None
    start_deadline: UtcTime | None
    finish_deadline: UtcTime | None
    created_at: UtcTime
    started_at: UtcTime | None
    finished_at: UtcTime | None
    links: BatchLinks


class BatchItem(Job):
    """One job of a batch, with its place in the file."""

    custom_id: str
    line: int


class Finding(AnswerModel):
    """One error of the validation report."""

    line: int | None
    custom_id: str | None
    pointer: str | None
    code: str
    message: str


class Estimate(AnswerModel):
    """What the batch would take, from what the models' latest jobs took."""

    gpu_seconds: float
    jobs_of_evidence: int


class DryRun(AnswerModel):
    """What a batch would be. Nothing was kept."""

    accepted: bool = Field(description="Whether the same request without dry_run makes a batch.")
    lines: int
    invalid_lines: int
    jobs: int
    images: int
    cost: int = Field(description="Width × height × steps that run, over all images.")
    estimate: Estimate | None = Field(description="null without evidence.")
    eta: UtcTime | None = Field(
        description="Even odds, behind what waits now. null without evidence or a live worker."
    )
    error_count: int
    errors: list[Finding] = Field(description="The first 20.")


class BatchFile(AnswerModel):
    """A file from which batches can be made."""

    id: str
    name: str
    bytes: int
    sha256: str
    created_at: UtcTime


class RetryResult(AnswerModel):
    """What a retry has set in motion."""

    retried: int
    batch: Batch


SUBMISSION_EXAMPLES: dict[str, Any] = {
    "three prompts": {
        "session_id": "shapes",
        "defaults": {"steps": 20},
        "items": [
            {"custom_id": "a", "prompt": "a red circle", "seed": 7},
            {"custom_id": "b", "prompt": "a blue square", "num_images": 2},
            "a yellow triangle",
        ],
    },
    "a product of lists": {
        "items": [
            {
                "custom_id": "grid",
                "prompt": "a {red|blue|green} {circle|square}",
                "matrix": {"guidance_scale": [3, 5, 8], "seed": [1, 2]},
            }
        ]
    },
    "an uploaded file": {"upload_id": "upl_01jd4zk3v8e0x9m5q7r2t6w8ya", "on_error": "skip"},
}

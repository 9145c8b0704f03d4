"""What clients send and get for batches."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from api.batches.columns import (
    MAX_PLACEHOLDERS,
    Mapped,
    column_name,
    fields_of,
    is_field,
    list_fields,
    no_such_field,
    placeholders,
)
from api.batches.file_formats import MAX_LINES
from api.core.bodies import JSON_INTEGER, RequestModel
from api.core.errors import RuleBroken, pointer
from api.core.serialization import AnswerModel, UtcTime
from api.jobs.schemas import Job
from api.jobs.submission import MetadataKey, MetadataValue, PromptText, Seconds, SessionId
from api.webhooks.schemas import BatchWebhook

BatchStateName = Literal[
    "validating", "queued", "running", "succeeded", "partial", "failed", "canceled", "expired"
]
MAX_NAME = 200
Priority = Annotated[int, Field(ge=0, le=9), JSON_INTEGER]


class BatchOptions(RequestModel):
    """Options of the whole batch. In a multipart body each is a form field of its name."""

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
    template: PromptText | None = Field(
        default=None,
        description="The prompt of every line. `{name}` is the value of that column (of that key, "
        "in JSON), taken literally; `{a|b}` are alternatives.",
    )
    columns: Annotated[dict[str, Mapped], Field(max_length=256)] = Field(
        default_factory=dict,
        description="Which field a column is, or which fields: its name to theirs, also "
        "`metadata.NAME`; null: none. With this or `template`, other columns than fields are left "
        "out.",
    )
    name: Annotated[MetadataValue, Field(min_length=1, max_length=MAX_NAME)] | None = Field(
        default=None, description="A name of your choice; default: the file's name."
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
    webhook: BatchWebhook | None = Field(
        default=None, description="Also notify this URL, in addition to the registered endpoints."
    )

    @model_validator(mode="after")
    def _defaults_are_for_lines(self) -> Self:
        if "custom_id" in self.defaults:
            raise RuleBroken(
                "custom_id_in_defaults", "Each line needs its own custom_id.", "/defaults/custom_id"
            )
        return self

    @model_validator(mode="after")
    def _template_names_columns(self) -> Self:
        if self.template is None:
            return self
        count = len(placeholders(self.template))
        if not count:
            message = "Name a column in braces, such as {product}."
            raise RuleBroken("no_placeholder", message, "/template")
        if count > MAX_PLACEHOLDERS:
            message = f"A template names {MAX_PLACEHOLDERS} columns at most."
            raise RuleBroken("too_many_placeholders", message, "/template")
        return self

    @model_validator(mode="after")
    def _columns_are_fields(self) -> Self:
        taken = {"prompt"} if self.template is not None else set()
        names = set()
        for name, mapped in self.columns.items():
            where = pointer("columns", name[:64])
            if column_name(name) in names:
                raise RuleBroken("duplicate_column", "This column is named twice.", where)
            names.add(column_name(name))
            for field in fields_of(mapped):
                if not is_field(field):
                    message = f"{no_such_field(field)} The fields are: {list_fields()}."
                    raise RuleBroken("unknown_field", message, where)
                if field in taken:
                    is_prompt = field == "prompt" and self.template is not None
                    other = "The template" if is_prompt else "Another column"
                    message = f"{other} is {field[:80]} already."
                    raise RuleBroken("duplicate_field", message, where)
                taken.add(field)
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
            raise RuleBroken("format_without_file", "format applies to files only.", "/format")
        return self


class BatchUpdate(RequestModel):
    """Changes to a batch that has not ended."""

    priority: Priority
    """0 to 9. Among your key's batches a higher one goes first."""


class Counts(AnswerModel):
    """How many jobs are in each state, counted in the database for this answer."""

    total: int
    """All jobs of the batch."""
    queued: int
    """Jobs that wait."""
    running: int
    """Jobs that workers are running."""
    succeeded: int
    """Jobs that made all their images."""
    failed: int
    """Jobs that failed."""
    canceled: int
    """Jobs that were canceled."""
    expired: int
    """Jobs that missed a deadline."""


class ImageCounts(AnswerModel):
    """Images asked for, and images made."""

    total: int
    """Images that all jobs together are to make."""
    done: int
    """Images of the jobs that succeeded, without those that a filter refused."""


class Rate(AnswerModel):
    """The last minute."""

    jobs_per_second: float
    """Jobs that ended, per second."""


class BatchLinks(AnswerModel):
    """Links from a batch."""

    self: str
    """This batch."""
    items: str
    """Its jobs."""
    results: str
    """Its results, as JSON lines."""
    errors: str
    """Its errors, as JSON lines."""
    archive: str
    """Its images, as a ZIP file."""
    contact_sheet: str
    """Its thumbnails on one sheet."""
    cancel: str
    """POST here to cancel it."""
    pause: str
    """POST here to pause it."""
    resume: str
    """POST here to resume it."""
    retry_failed: str
    """POST here to retry what failed."""


class Batch(AnswerModel):
    """A batch. What does not apply is null."""

    id: str
    """`batch_…`."""
    name: str | None
    """Its name, or its file's. Null: it has neither."""
    state: BatchStateName
    """`partial`: some jobs succeeded and some did not. `failed`: none did, or the file was
    refused."""
    sequence: int = Field(description="Counts the changes of the batch itself.")
    paused: bool
    """Whether no further job starts until it is resumed."""
    cancel_requested: bool
    """Whether a cancellation was asked for."""
    priority: int
    """0 to 9. Among your key's batches a higher one goes first."""
    source: Literal["json", "jsonl", "csv"]
    """Input format."""
    on_error: Literal["reject", "skip"]
    """`reject`: one bad line refuses the file. `skip`: bad lines are only reported."""
    session_id: str | None
    """The session of every line that names none. Null: `default`."""
    models: list[str]
    """Names of the models that its jobs use."""
    lines: int = Field(description="Lines read, without blank ones.")
    invalid_lines: int = Field(description="Lines that broke a rule; GET …/errors says which.")
    counts: Counts
    """Its jobs by state."""
    images: ImageCounts
    """Its images, asked for and made."""
    cost: int = Field(description="Width × height × steps that run, over all images.")
    fraction: float = Field(description="Jobs that have ended, 0 to 1.")
    rate: Rate | None
    """Its speed over the last minute. Null: no job ended in that minute, or the batch has ended."""
    eta: UtcTime | None = Field(description="null until there is enough evidence.")
    metadata: dict[str, str]
    """Your own keys and values."""
    webhook_url: str | None
    """Its own webhook. Null: none."""
    start_deadline: UtcTime | None
    """Jobs that have not started by then expire. Null: no deadline."""
    finish_deadline: UtcTime | None
    """Jobs that have not finished by then expire. Null: no deadline."""
    created_at: UtcTime
    """When it was submitted."""
    started_at: UtcTime | None
    """When its first job started. Null: none has."""
    finished_at: UtcTime | None
    """When its last job ended. Null: it has not ended."""
    links: BatchLinks
    """URLs of related resources. They need the API key."""


class BatchItem(Job):
    """One job of a batch, with its place in the file."""

    custom_id: str
    """Your name for the line; with a matrix or several prompts, each job's own."""
    line: int
    """The line of the file, from 1."""


class Finding(AnswerModel):
    """One error of the validation report."""

    line: int | None
    """The line of the file, from 1. Null: the whole file is meant."""
    custom_id: str | None
    """Your name for the line. Null: it has none that can be read."""
    pointer: str | None
    """JSON pointer (RFC 6901) to the field. Null: the whole line is meant."""
    code: str
    """A stable code."""
    message: str
    """A human-readable explanation."""


class Estimate(AnswerModel):
    """Estimated cost of the batch, from the models' latest jobs."""

    gpu_seconds: float
    """Device time of all jobs, in seconds."""
    jobs_of_evidence: int
    """How many past jobs the estimate rests on."""


class TableColumn(AnswerModel):
    """A column of a CSV file, or a key of JSON lines."""

    name: str
    """As the file has it."""
    example: str | None
    """The first value in it, shortened. Null: none in the first 20 lines."""
    fields: list[str]
    """The fields of a job that it is. Empty: it is left out, but for the template."""


class PlannedLine(AnswerModel):
    """A job as it would be queued."""

    line: int
    """The line of the file, from 1."""
    custom_id: str
    """Your name for it, or its line's."""
    prompt: str
    """What the images should show."""
    negative_prompt: str | None
    """What they should not show. Null: nothing."""
    model: str
    """Name of the model."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    steps: int
    """Denoising steps."""
    seeds: list[int]
    """One for each image. Random ones are drawn again at submission."""


class DryRun(AnswerModel):
    """A preview of a batch. Nothing was kept."""

    accepted: bool = Field(description="Whether the request would be accepted without dry_run.")
    lines: int
    """Lines read, without blank ones."""
    invalid_lines: int
    """Lines that broke a rule."""
    jobs: int
    """Jobs that the valid lines make."""
    images: int
    """Images that these jobs make."""
    refused_jobs: int
    """Jobs whose prompt a filter refuses: they would fail, one by one."""
    cost: int = Field(description="Width × height × steps that run, over all images.")
    estimate: Estimate | None = Field(description="null without evidence.")
    eta: UtcTime | None = Field(
        description="Even odds, behind what waits now. null without evidence or a live worker."
    )
    error_count: int
    """All errors found, also those that are not listed."""
    errors: list[Finding] = Field(description="The first 20.")
    columns: list[TableColumn] = Field(
        description="Fields that the first 20 lines of a file name. Empty for `items`, and for a "
        "file that cannot be read."
    )
    first_jobs: list[PlannedLine] = Field(description="The first 5.")


class BatchFile(AnswerModel):
    """A file from which batches can be made."""

    id: str
    """`upl_…`. Pass it as `upload_id` of a batch."""
    name: str
    """The name that the file was sent under."""
    bytes: int
    """Size as it was sent, in bytes."""
    sha256: str
    """SHA-256 of the file as it was sent, 64 lower-case hexadecimal digits."""
    created_at: UtcTime
    """When it was sent."""


class RetryResult(AnswerModel):
    """Result of a retry."""

    retried: int
    """Jobs that were queued again."""
    batch: Batch
    """The batch now."""


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

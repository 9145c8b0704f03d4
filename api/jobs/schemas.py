"""What clients send and get for jobs."""

import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from api.core.bodies import JSON_INTEGER, RequestModel
from api.core.errors import RuleBroken
from api.core.serialization import AnswerModel, UtcTime
from api.webhooks.schemas import JobWebhook

MAX_SEED = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
MAX_PROMPT = 4000
_MAX_INIT_IMAGE = 15_000_000
"""Characters; the limit in bytes is checked when the data: URL is decoded."""
_ALLOWED_CONTROLS = frozenset("\t\n\r")
_WEEK = 7 * 24 * 3600
_DEFAULT_SIZE = (
    "default of the model, or, with an initial image, what keeps its shape: beside the other side "
    "if that is given, else with about as many pixels as the model's default."
)


def _has_controls(text: str) -> bool:
    return any(
        unicodedata.category(character) in ("Cc", "Cs") and character not in _ALLOWED_CONTROLS
        for character in text
    )


def _clean_text(text: str) -> str:
    if not text.isprintable() and _has_controls(text):
        raise RuleBroken("control_characters", "Control characters are not allowed.")
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_PROMPT:
        raise RuleBroken("too_long", f"At most {MAX_PROMPT} characters are allowed.")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise RuleBroken("empty", "The prompt is empty.")
    return text


def _printable_or_space(text: str) -> str:
    if not text.isprintable() and _has_controls(text):
        raise RuleBroken("control_characters", "Control characters are not allowed.")
    return text


def _not_reserved(key: str) -> str:
    if key == REPRODUCES:
        raise RuleBroken("reserved", "Darkroom itself marks jobs by this key.")
    return key


PromptText = Annotated[str, AfterValidator(_clean_text), AfterValidator(_not_blank)]
NegativeText = Annotated[str, AfterValidator(_clean_text)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), JSON_INTEGER]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=8), JSON_INTEGER]
MetadataKey = Annotated[
    str,
    Field(min_length=1, max_length=64),
    AfterValidator(_printable_or_space),
    AfterValidator(_not_reserved),
]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_printable_or_space)]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seconds = Annotated[float, Field(gt=0, le=_WEEK)]
ResizeMode = Literal["fill", "fit", "stretch"]
REPRODUCES = "reproduces"
"""The metadata key of a job that makes an image again; its value is the image's id."""

JobStateName = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]


class JobSubmission(RequestModel):
    """A request for 1…n pictures. Everything but the prompt has a default."""

    prompt: PromptText = Field(description=f"1 to {MAX_PROMPT} characters; kept in NFC.")
    negative_prompt: NegativeText | None = Field(
        default=None, description="What the picture should not show."
    )
    num_images: Annotated[int, Field(ge=1, le=64), JSON_INTEGER] | None = Field(
        default=None, description="1 to the server's limit (16 unless configured); default 1."
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the first image; image i has seed + i. Default: drawn."
    )
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="One seed for each image, instead of `seed`."
    )
    width: Side | None = Field(default=None, description=f"Pixels; {_DEFAULT_SIZE}")
    height: Side | None = Field(default=None, description=f"Pixels; {_DEFAULT_SIZE}")
    steps: Annotated[int, Field(ge=1, le=500), JSON_INTEGER] | None = Field(
        default=None, description="Denoising steps; default and limit of the model."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = Field(
        default=None, description="Classifier-free guidance; default of the model."
    )
    scheduler: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A name from GET /v1/models; default of the model."
    )
    model: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="A name from GET /v1/models; default: the first."
    )
    session_id: SessionId = Field(
        default="default", description="Your folder for this picture; made on first use."
    )
    init_image: Annotated[str, Field(max_length=_MAX_INIT_IMAGE)] | None = Field(
        default=None,
        description="Makes it img2img: an upload id, an image id, a data: or an https URL.",
    )
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="img2img only: how far to leave the initial image. Default 0.8."
    )
    resize_mode: ResizeMode | None = Field(
        default=None,
        description="img2img only, where the initial image has another shape than the job. fill: "
        "crop what is too much (default); fit: show all of it, its edges continued; stretch.",
    )
    output_format: Literal["png", "webp", "jpeg"] = "png"
    """File format of the images. PNG and WebP are lossless, JPEG is not."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = Field(
        default_factory=dict, description="16 keys of 64 characters, values of 512."
    )
    previews: bool = Field(default=False, description="Send small previews as events.")
    start_within: Seconds | None = Field(
        default=None, description="Seconds; a job that has not started by then expires."
    )
    finish_within: Seconds | None = Field(
        default=None, description="Seconds; a job that has not finished by then expires."
    )
    webhook: JobWebhook | None = Field(
        default=None, description="Tell this URL too, beside the registered endpoints."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.seed is not None and self.seeds is not None:
            raise RuleBroken("conflicting_seeds", "Give either seed or seeds, not both.", "/seeds")
        if self.strength is not None and self.init_image is None:
            raise RuleBroken(
                "strength_without_init_image", "strength needs an init_image.", "/strength"
            )
        if self.resize_mode is not None and self.init_image is None:
            raise RuleBroken(
                "resize_mode_without_init_image", "resize_mode needs an init_image.", "/resize_mode"
            )
        if self.seeds is not None and self.num_images not in (None, len(self.seeds)):
            raise RuleBroken("seeds_length", "seeds must have num_images entries.", "/seeds")
        return self


class JobImage(AnswerModel):
    """A finished picture of a job. Its URLs read it without a key, for some minutes."""

    id: str
    """`img_…`."""
    index: int
    """Place among the job's images, from 0."""
    seed: int
    """The seed that it was made with."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    content_type: str
    """Media type of the file: `image/png`, `image/webp` or `image/jpeg`."""
    bytes: int
    """Size of the file, in bytes."""
    sha256: str
    """SHA-256 of the file, 64 lower-case hexadecimal digits."""
    url: str
    """Signed URL of the file. Needs no key and expires within 15 minutes."""
    thumbnail_url: str
    """Signed URL of a small WebP. Needs no key and expires within 15 minutes."""
    starred: bool
    """Whether it was marked as one to keep."""


class Progress(AnswerModel):
    """How far a job is. `step` and `steps` are of the image in work, `fraction` of the job."""

    step: int
    """Denoising steps done of the image in work."""
    steps: int
    """Denoising steps that this image takes."""
    fraction: float
    """How much of the whole job is done, 0 to 1."""


class ErrorInfo(AnswerModel):
    """Why a job or an attempt failed."""

    code: str
    """A stable code, such as `out_of_memory`, `worker_lost` or `timed_out`."""
    message: str | None
    """A human-readable explanation. Null: the code says it all."""


class Attempt(AnswerModel):
    """One worker's try at a job."""

    number: int
    """Counts the job's attempts, from 1."""
    worker: str
    """Name of the worker."""
    device: str | None
    """Its device, such as `NVIDIA H100` or `cpu`. Null: not known."""
    started_at: UtcTime
    """When the worker claimed the job."""
    finished_at: UtcTime | None
    """When the attempt ended. Null while it runs."""
    outcome: str | None
    """`succeeded`, `failed`, `canceled`, `expired`, `released` (handed back unharmed) or `lost`
    (the worker died). Null while it runs."""
    error: ErrorInfo | None
    """Why it failed. Null: it did not."""


class JobMetrics(AnswerModel):
    """Times in milliseconds, device time in seconds."""

    queue_ms: float | None
    """From submission to the latest start, in milliseconds. Null before a start."""
    run_ms: float | None
    """From the latest start to the end, in milliseconds. Null before the end."""
    gpu_seconds: float | None = Field(
        description="Of all attempts, failed and canceled ones included; null before one has ended."
    )


class JobLinks(AnswerModel):
    """Where to go on from a job."""

    self: str
    """This job."""
    events: str
    """Its events as server-sent events."""
    cancel: str
    """POST here to cancel it."""
    images: str
    """Its finished images."""


class StreamTicket(AnswerModel):
    """A way to a job's events that needs no key."""

    url: str = Field(description="Give it to `EventSource` as it is; keep it out of logs.")
    expires_at: UtcTime = Field(description="A stream that is open then ends.")


class JobWarning(AnswerModel):
    """Something the client should know, although the job was accepted."""

    code: str
    """A stable code, such as `model_not_served`."""
    message: str
    """A human-readable explanation."""


class Eta(AnswerModel):
    """When a job will be done, by what such jobs took of late and what is before it."""

    p50: UtcTime = Field(description="Half of such jobs are done by then.")
    p90: UtcTime = Field(description="Nine of ten such jobs are done by then.")


class Job(AnswerModel):
    """A job as it stands. What does not apply is null."""

    id: str
    """`job_…`."""
    kind: Literal["txt2img", "img2img"]
    """`img2img` if it starts from an image, else `txt2img`."""
    state: JobStateName
    """`queued` and `running` change; the other states are final, unless it is retried."""
    sequence: int = Field(description="Counts the transitions; grows with every one.")
    model: str
    """Name of the model."""
    session_id: str
    """The session that its images belong to."""
    batch_id: str | None
    """Its batch, `batch_…`. Null: it was submitted alone."""
    prompt: str
    """What the images show."""
    negative_prompt: str | None
    """What the images should not show. Null: none was given."""
    width: int
    """Width of the images, in pixels."""
    height: int
    """Height of the images, in pixels."""
    steps: int
    """Denoising steps asked for, per image."""
    executed_steps: int
    """Denoising steps that run: fewer than `steps` where a `strength` leaves some out."""
    guidance_scale: float
    """Classifier-free guidance scale."""
    scheduler: str
    """Name of the scheduler."""
    strength: float | None
    """How far to leave the initial image, above 0 to 1. Null for txt2img."""
    init_image: str | None
    """The initial image, `upl_…` or `img_…`. Null for txt2img."""
    resize_mode: ResizeMode | None
    """How the initial image gets the job's size. Null for txt2img."""
    output_format: str
    """File format of the images: `png`, `webp` or `jpeg`."""
    seeds: list[int]
    """One seed for each image, in order."""
    images: list[JobImage]
    """Finished images, in the order of their seeds. Empty until the job succeeds."""
    progress: Progress | None
    """How far it is. Null unless it runs or has succeeded."""
    queue_position: int | None = Field(
        description="Queued jobs that go first; null unless queued, and null in lists."
    )
    eta: Eta | None = Field(
        description="Null once it has ended, without evidence of such jobs, while no live worker "
        "has the model warm, and in lists."
    )
    cancel_requested: bool
    """Whether a cancellation was asked for."""
    attempts: list[Attempt]
    """Workers' tries at it, oldest first."""
    error: ErrorInfo | None
    """Why it failed. Null: it did not."""
    warnings: list[JobWarning]
    """What to know although it was accepted."""
    metrics: JobMetrics
    """How long it waited and ran."""
    metadata: dict[str, str]
    """Your own keys and values."""
    created_at: UtcTime
    """When it was submitted."""
    started_at: UtcTime | None
    """When its latest attempt started. Null: it has not started."""
    finished_at: UtcTime | None
    """When it reached a final state. Null: it has not."""
    links: JobLinks
    """URLs of related resources. They need the API key."""


class JobDryRun(AnswerModel):
    """What a submission would be; nothing was kept, and nothing is promised."""

    valid: Literal[True] = Field(description="A request that breaks a rule gets its problem.")
    kind: Literal["txt2img", "img2img"]
    """`img2img` if it starts from an image, else `txt2img`."""
    model: str
    """Name of the model it would use."""
    width: int
    """Width of the images, in pixels."""
    height: int
    """Height of the images, in pixels."""
    steps: int
    """Denoising steps asked for, per image."""
    executed_steps: int
    """Denoising steps that would run: fewer than `steps` where a `strength` leaves some out."""
    guidance_scale: float
    """Classifier-free guidance scale."""
    scheduler: str
    """Name of the scheduler."""
    strength: float | None
    """How far to leave the initial image, above 0 to 1. Null for txt2img."""
    resize_mode: ResizeMode | None
    """How the initial image would get the job's size. Null for txt2img."""
    num_images: int
    """Images it would make."""
    seeds: list[int] | None = Field(description="Null: they would be drawn at the submission.")
    cost: int = Field(description="Width × height × steps that run × images, the unit of quotas.")
    eta: Eta | None = Field(description="If it were submitted now. Null without evidence.")
    warnings: list[JobWarning]
    """What to know before submitting it."""


SUBMISSION_EXAMPLES: dict[str, Any] = {
    "text to image": {"prompt": "a red circle on a white background", "seed": 7},
    "four variations": {
        "prompt": "a blue square above a yellow triangle",
        "num_images": 4,
        "steps": 25,
        "session_id": "shapes",
    },
    "image to image": {
        "prompt": "the same scene at night",
        "init_image": "img_01jd4zk3v8e0x9m5q7r2t6w8ya",
        "strength": 0.6,
    },
}

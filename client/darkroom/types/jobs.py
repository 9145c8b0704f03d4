"""Jobs, the typed state of each, and the events of a job's stream."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import msgspec

from darkroom.decoding import Document, decode
from darkroom.errors import APIResponseValidationError
from darkroom.types.images import Image, Images

__all__ = [
    "Attempt",
    "Canceled",
    "ErrorInfo",
    "Eta",
    "Expired",
    "Failed",
    "ImageMade",
    "Job",
    "JobChanged",
    "JobDryRun",
    "JobEvent",
    "JobMetrics",
    "JobStatus",
    "JobWarning",
    "OtherState",
    "PreviewMade",
    "Progress",
    "ProgressMade",
    "Queued",
    "Reproduction",
    "Running",
    "StreamTicket",
    "Succeeded",
]

FINAL_STATES = frozenset({"succeeded", "failed", "canceled", "expired"})


class Progress(Document, frozen=True, kw_only=True):
    """`step` and `steps` are of the current image, `fraction` (0 to 1) of the whole job."""

    step: int
    steps: int
    fraction: float


class ErrorInfo(Document, frozen=True, kw_only=True):
    """Why a job or an attempt failed."""

    code: str
    message: str | None = None


class Attempt(Document, frozen=True, kw_only=True):
    """One worker's attempt at a job."""

    number: int
    worker: str
    device: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: str | None = None
    error: ErrorInfo | None = None


class JobMetrics(Document, frozen=True, kw_only=True):
    """Times in milliseconds, device time in seconds; None until they are known."""

    queue_ms: float | None = None
    run_ms: float | None = None
    gpu_seconds: float | None = None


class JobWarning(Document, frozen=True, kw_only=True):
    """Something to know although the job was accepted."""

    code: str
    message: str


class Eta(Document, frozen=True, kw_only=True):
    """When a job will be done, calibrated on recent jobs and the work ahead of it."""

    p50: datetime
    """Half of such jobs are done by then."""
    p90: datetime
    """Nine of ten such jobs are done by then."""


class Queued(msgspec.Struct, frozen=True):
    """Waiting for a worker. Left when it is claimed or canceled, or when a deadline passes."""

    is_final: ClassVar[bool] = False
    position: int | None
    """Queued jobs ahead of it; None in lists, which do not compute it."""
    eta: Eta | None


class Running(msgspec.Struct, frozen=True):
    """A worker is making the images."""

    is_final: ClassVar[bool] = False
    progress: Progress | None
    eta: Eta | None
    cancel_requested: bool


class Succeeded(msgspec.Struct, frozen=True):
    """All images are made and stored."""

    is_final: ClassVar[bool] = True
    images: Images


class Failed(msgspec.Struct, frozen=True):
    """The cause is permanent, or all attempts are used up. `retry()` tries again."""

    is_final: ClassVar[bool] = True
    error: ErrorInfo


class Canceled(msgspec.Struct, frozen=True):
    """Canceled on request. `retry()` queues it again."""

    is_final: ClassVar[bool] = True


class Expired(msgspec.Struct, frozen=True):
    """A deadline passed first. `retry()` queues it again, without deadlines."""

    is_final: ClassVar[bool] = True


class OtherState(msgspec.Struct, frozen=True):
    """A state that this version of the client does not know."""

    is_final: ClassVar[bool] = False
    name: str


JobStatus = Queued | Running | Succeeded | Failed | Canceled | Expired | OtherState


class JobLora(Document, frozen=True, kw_only=True):
    """A LoRA of a job."""

    name: str
    scale: float
    """How strongly it acts, -4 to 4."""


class JobHires(Document, frozen=True, kw_only=True):
    """A job's second pass, with every choice made."""

    scale: float
    strength: float | None = None
    """None: pixels are merely resampled."""
    steps: int
    upscaler: str
    """`latent` or `lanczos`."""
    width: int
    """Of the final images."""
    height: int


class JobExpand(Document, frozen=True, kw_only=True):
    """Pixels that are painted around the initial image."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class JobControl(Document, frozen=True, kw_only=True):
    """A ControlNet of a job, and what it sees."""

    name: str
    image: str | None = None
    """`upl_…` or `img_…`. None: a dry run does not say."""
    scale: float
    start: float
    end: float
    preprocess: str
    low: int | None = None
    high: int | None = None


class JobReference(Document, frozen=True, kw_only=True):
    """A reference image of a job, and how much it counts."""

    image: str | None = None
    """`upl_…` or `img_…`. None: a dry run does not say."""
    scale: float


class JobSettings(Document, frozen=True, kw_only=True):
    """Options of a job that most jobs leave at their defaults; `JobOptions` explains them."""

    prompt_syntax: str = "plain"
    long_prompt: bool = False
    hires: JobHires | None = None
    controls: tuple[JobControl, ...] = ()
    references: tuple[JobReference, ...] = ()
    """In the order in which they act."""
    mask_from_alpha: bool = False
    expand: JobExpand | None = None
    masked_content: str = "original"
    mask_blur: int = 4
    padding_mask_crop: int | None = None
    preserve_unmasked: bool = True
    output_quality: int | None = None

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        own = JobSettings.__struct_fields__
        return sorted(super().__rich_repr__(), key=lambda field: field[0] in own)


class Job(JobSettings, frozen=True, kw_only=True):
    """A job at the time of the answer. What does not apply is None."""

    hidden = ("links",)

    id: str
    kind: str
    """`txt2img`, `img2img`, `inpaint` or `upscale`."""
    state: str
    sequence: int
    """Counts the transitions."""
    model: str
    session_id: str
    prompt: str
    seeds: tuple[int, ...]
    """One per image, known before the images exist."""
    created_at: datetime
    batch_id: str | None = None
    negative_prompt: str | None = None
    width: int
    height: int
    steps: int
    executed_steps: int | None = None
    """Steps that run: fewer than `steps` where `strength` skips some. None: unknown until a
    worker loads the model."""
    guidance_scale: float
    true_cfg_scale: float | None = None
    scheduler: str
    strength: float | None = None
    init_image: str | None = None
    mask_image: str | None = None
    resize_mode: str | None = None
    """How the initial image was given the job's size: `fill`, `fit` or `stretch`."""
    loras: tuple[JobLora, ...] = ()
    """In the order in which they act."""
    output_format: str = "png"
    images: Images = Images()
    """Those that are finished; `images.filtered` are those that a filter refused."""
    progress: Progress | None = None
    queue_position: int | None = None
    """Queued jobs that go first, counted to 1,000."""
    queue_position_exact: bool | None = None
    """False: at least `queue_position` go first."""
    eta: Eta | None = None
    """None once it has ended, in lists, and while there is no evidence for an estimate."""
    cancel_requested: bool = False
    attempts: tuple[Attempt, ...] = ()
    error: ErrorInfo | None = None
    warnings: tuple[JobWarning, ...] = ()
    metrics: JobMetrics = JobMetrics()
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether it has ended; only a retry changes it then."""
        return self.state in FINAL_STATES

    @property
    def status(self) -> JobStatus:
        """The state with the fields that belong to it, for `match`."""
        unknown = ErrorInfo(code="unknown", message=None)
        states: dict[str, JobStatus] = {
            "queued": Queued(self.queue_position, self.eta),
            "running": Running(self.progress, self.eta, self.cancel_requested),
            "succeeded": Succeeded(self.images),
            "failed": Failed(self.error or unknown),
            "canceled": Canceled(),
            "expired": Expired(),
        }
        return states.get(self.state) or OtherState(self.state)


class JobDryRun(JobSettings, frozen=True, kw_only=True):
    """A preview of a submission. Nothing was stored, and nothing is promised."""

    valid: bool
    kind: str
    model: str
    width: int
    height: int
    steps: int
    executed_steps: int | None = None
    """Steps that would run. None: unknown until a worker loads the model."""
    guidance_scale: float
    true_cfg_scale: float | None = None
    scheduler: str
    strength: float | None = None
    resize_mode: str | None = None
    loras: tuple[JobLora, ...] = ()
    num_images: int
    seeds: tuple[int, ...] | None = None
    """None: they would be drawn on submission."""
    cost: int
    """Width × height × steps that run × images, the unit of quotas."""
    eta: Eta | None = None
    """If it were submitted now; None without evidence."""
    warnings: tuple[JobWarning, ...] = ()


class StreamTicket(Document, frozen=True, kw_only=True):
    """A URL for a job's events that needs no key, for an `EventSource` in a browser."""

    hidden = ("url",)

    url: str
    """Use it as it is, and keep it out of logs."""
    expires_at: datetime
    """A stream that is still open ends then."""


class Reproduction(Document, frozen=True, kw_only=True):
    """An image made again and compared.

    `verdict` is `identical` (every pixel), `equivalent` (no channel of a pixel differs by more
    than 8 of 255) or `different`; None while the job has not ended.
    """

    verdict: str | None
    max_pixel_difference: int | None = None
    reason: str | None = None
    image: Image | None = None
    """The new image."""
    job: Job


class JobChanged(msgspec.Struct, frozen=True):
    """The whole job: first in every stream, after each transition, and last."""

    id: str
    """Pass it as `after` to resume behind this event; empty where there is none yet."""
    job: Job


class ProgressMade(msgspec.Struct, frozen=True):
    """A denoising step is done."""

    id: str
    image_index: int
    step: int
    steps: int
    fraction: float
    """Of this image, 0 to 1."""
    job_fraction: float | None = None
    """Of the whole job, 0 to 1; None from older servers."""


class PreviewMade(msgspec.Struct, frozen=True):
    """A small image of the work so far, for jobs that asked for `previews`."""

    id: str
    image_index: int
    content_type: str
    """`image/webp`"""
    data: bytes

    def __repr__(self) -> str:
        return f"PreviewMade(id={self.id!r}, image_index={self.image_index}, …)"


class ImageMade(msgspec.Struct, frozen=True):
    """One of the job's images is finished; the last `JobChanged` has all with their URLs."""

    id: str
    image_index: int
    seed: int
    image_id: str | None
    """None: a filter refused it."""


JobEvent = JobChanged | ProgressMade | PreviewMade | ImageMade


def decode_event(kind: str, event_id: str, text: str) -> JobEvent | None:
    """The event, or None for a kind that this version does not know.

    Raises:
        APIResponseValidationError: its data does not have the fields of its kind.
    """
    try:
        data = msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise APIResponseValidationError(f"A {kind} event cannot be read: {error}") from error
    if kind == "job":
        return JobChanged(event_id, decode(Job, data))
    if kind == "progress":
        return decode(ProgressMade, {**data, "id": event_id})
    if kind == "preview":
        return decode(PreviewMade, {**data, "id": event_id})
    if kind == "image":
        renamed = {"image_index": data.get("index"), "image_id": data.get("id")}
        return decode(ImageMade, {**data, **renamed, "id": event_id})
    return None

"""Jobs, and the typed state of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from darkroom.decoding import Document
from darkroom.types.images import Image

FINAL_STATES = frozenset({"succeeded", "failed", "canceled", "expired"})


@dataclass(frozen=True, kw_only=True)
class Progress(Document):
    """`step` and `steps` are of the picture in work, `fraction` (0 to 1) of the job."""

    step: int
    steps: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class ErrorInfo(Document):
    """Why a job or an attempt failed."""

    code: str
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt(Document):
    """One worker's try at a job."""

    number: int
    worker: str
    device: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: str | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, kw_only=True)
class JobMetrics(Document):
    """Times in milliseconds, device time in seconds; None before there is one."""

    queue_ms: float | None = None
    run_ms: float | None = None
    gpu_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobWarning(Document):
    """Something to know, although the job was accepted."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Eta(Document):
    """When a job will be done, by what such jobs took of late and what is before it."""

    p50: datetime
    """Half of such jobs are done by then."""
    p90: datetime
    """Nine of ten such jobs are done by then."""


@dataclass(frozen=True)
class Queued:
    """Waits for a worker. Left by a claim, a cancellation or a deadline."""

    is_final: ClassVar[bool] = False
    position: int | None
    """Queued jobs that go first; None where that was not asked, as in lists."""
    eta: Eta | None


@dataclass(frozen=True)
class Running:
    """A worker makes the pictures."""

    is_final: ClassVar[bool] = False
    progress: Progress | None
    eta: Eta | None
    cancel_requested: bool


@dataclass(frozen=True)
class Succeeded:
    """All pictures are made and kept."""

    is_final: ClassVar[bool] = True
    images: tuple[Image, ...]


@dataclass(frozen=True)
class Failed:
    """The cause cannot pass, or the attempts are used up. `retry()` tries again."""

    is_final: ClassVar[bool] = True
    error: ErrorInfo


@dataclass(frozen=True)
class Canceled:
    """At somebody's wish. `retry()` queues it again."""

    is_final: ClassVar[bool] = True


@dataclass(frozen=True)
class Expired:
    """A deadline passed first. `retry()` queues it again, without deadlines."""

    is_final: ClassVar[bool] = True


@dataclass(frozen=True)
class OtherState:
    """A state that this version of the client does not know."""

    is_final: ClassVar[bool] = False
    name: str


JobStatus = Queued | Running | Succeeded | Failed | Canceled | Expired | OtherState


@dataclass(frozen=True, kw_only=True)
class Job(Document):
    """A job as it stood when it was asked for. What does not apply is None."""

    id: str
    kind: str
    """`txt2img` or `img2img`."""
    state: str
    sequence: int
    """Counts the transitions."""
    model: str
    session_id: str
    prompt: str
    seeds: tuple[int, ...]
    """One for each picture, known before the pictures exist."""
    created_at: datetime
    batch_id: str | None = None
    negative_prompt: str | None = None
    width: int
    height: int
    steps: int
    executed_steps: int | None = None
    """Steps that run: fewer where a `strength` leaves some out. None: the server does not say."""
    guidance_scale: float
    scheduler: str
    strength: float | None = None
    init_image: str | None = None
    resize_mode: str | None = None
    """How the initial image got the job's size: `fill`, `fit` or `stretch`."""
    output_format: str = "png"
    images: tuple[Image, ...] = ()
    progress: Progress | None = None
    queue_position: int | None = None
    eta: Eta | None = None
    """None once it has ended, in lists, and without evidence to say it from."""
    cancel_requested: bool = False
    attempts: tuple[Attempt, ...] = ()
    error: ErrorInfo | None = None
    warnings: tuple[JobWarning, ...] = ()
    metrics: JobMetrics = JobMetrics()
    metadata: Mapping[str, str] = field(default_factory=dict)
    started_at: datetime | None = None
    finished_at: datetime | None = None
    links: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_final(self) -> bool:
        """Whether it has ended; only a retry changes it then."""
        return self.state in FINAL_STATES

    @property
    def status(self) -> JobStatus:
        """The state with what belongs to it, for `match`."""
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


@dataclass(frozen=True, kw_only=True)
class JobDryRun(Document):
    """What a submission would be; nothing was kept, and nothing is promised."""

    valid: bool
    kind: str
    model: str
    width: int
    height: int
    steps: int
    executed_steps: int | None = None
    """Steps that would run. None: the server does not say."""
    guidance_scale: float
    scheduler: str
    strength: float | None = None
    resize_mode: str | None = None
    num_images: int
    seeds: tuple[int, ...] | None = None
    """None: they would be drawn at the submission."""
    cost: int
    """Width × height × steps that run × images, the unit of quotas."""
    eta: Eta | None = None
    """If it were submitted now; None without evidence."""
    warnings: tuple[JobWarning, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StreamTicket(Document):
    """A way to a job's events that needs no key, for an `EventSource` in a browser."""

    url: str = field(repr=False)
    """To be used as it is, and kept out of logs."""
    expires_at: datetime
    """A stream that is open then ends."""


@dataclass(frozen=True, kw_only=True)
class Reproduction(Document):
    """A picture made again and compared.

    `verdict` is `identical` (every pixel), `equivalent` (no channel of a pixel differs by more
    than 8 of 255) or `different`; None while the job has not ended.
    """

    verdict: str | None
    max_pixel_difference: int | None = None
    reason: str | None = None
    image: Image | None = None
    """The new picture."""
    job: Job

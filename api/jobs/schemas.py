"""What clients get for jobs, dry runs and images made again."""

from typing import Annotated, Any, Literal

from pydantic import Field

from api.core.serialization import AnswerModel, UtcTime
from api.images.schemas import FilteredImage, Image, JobImage, Provenance
from api.jobs.options import JobOptions, Preprocess, Upscaler
from api.jobs.submission import ResizeMode

JobStateName = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]


class JobLora(AnswerModel):
    """A LoRA of a job."""

    name: str
    """Its name in `GET /v1/loras`."""
    scale: float
    """How strongly it acts, -4 to 4."""


class UploadedLora(AnswerModel):
    """A LoRA of your tenant's own."""

    name: str
    """Pass it as `name` in a job's `loras`."""
    family: str
    """Architecture of the models that it is for."""
    trigger_words: list[str]
    """What to write in a prompt for it; nothing is inserted."""
    bytes: int
    """Of the file."""
    sha256: str
    """SHA-256 of the file."""
    created_at: UtcTime
    """When it was uploaded."""


class JobHires(AnswerModel):
    """A job's second pass, with every choice made."""

    scale: float
    """How many times larger, as asked for."""
    strength: float | None
    """How far the second pass may leave the upscaled image. Null: only the pixels are resampled."""
    steps: int
    """Of the second pass's whole schedule; 0 where only the pixels are resampled."""
    upscaler: Upscaler
    """`latent` or `lanczos`."""
    width: int
    """Width of the final images, in pixels."""
    height: int
    """Height of the final images, in pixels."""


class JobControl(AnswerModel):
    """A ControlNet of a job, and what it sees."""

    name: str
    """Its name in a model's `controlnets`."""
    image: str | None
    """`upl_…` or `img_…`, or its URL in a dry run. Null: a dry run with a `data:` URL."""
    scale: float
    """How strongly it acts, 0 to 2."""
    start: float
    """Where in the steps it begins, 0 to 1."""
    end: float
    """Where in the steps it ends, 0 to 1."""
    preprocess: Preprocess
    """`none`, or `canny`: it sees the image's edges."""
    low: int | None
    """Of canny: weaker edges are left out."""
    high: int | None
    """Of canny: edges that are drawn by themselves."""


class JobReference(AnswerModel):
    """A reference image of a job."""

    image: str | None
    """`upl_…` or `img_…`, or its URL in a dry run. Null: a dry run with a `data:` URL."""
    scale: float
    """How much it counts, 0 to 2."""


class Progress(AnswerModel):
    """A job's progress. `step` and `steps` are of the image in work, `fraction` of the job."""

    step: int
    """Denoising steps done of the image in work."""
    steps: int
    """Denoising steps that this image takes."""
    fraction: float
    """How much of the whole job is done, 0 to 1."""


class ErrorInfo(AnswerModel):
    """Why a job or an attempt failed."""

    code: str
    """A stable code, such as `out_of_memory` or `worker_lost`."""
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
    """Links from a job."""

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


class _JobFields(AnswerModel):
    """A job but for its options, which stand behind these fields."""

    id: str
    """`job_…`."""
    kind: Literal["txt2img", "img2img", "inpaint", "upscale"]
    """`upscale` if it makes an image larger, `inpaint` if it repaints a part of one, `img2img` if
    it starts from an image, else `txt2img`."""
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
    """Width of the images, in pixels; with `hires`, before it."""
    height: int
    """Height of the images, in pixels; with `hires`, before it."""
    steps: int
    """Denoising steps asked for, per image."""
    executed_steps: int | None
    """Denoising steps that run, in both passes: fewer than `steps` where a `strength` leaves some
    out. Null: the model's family is not known yet, and they depend on it."""
    guidance_scale: float
    """Classifier-free guidance scale."""
    true_cfg_scale: float | None
    """Guidance by a second call (FLUX, Qwen-Image). Null: the model's own."""
    scheduler: str
    """Name of the scheduler."""
    strength: float | None
    """How far to leave the initial image, above 0 to 1. Null for txt2img."""
    init_image: str | None
    """The initial image, `upl_…` or `img_…`. Null for txt2img."""
    mask_image: str | None
    """The mask, `upl_…` or `img_…`. Null: it has none of its own."""
    resize_mode: ResizeMode | None
    """How the initial image gets the job's size. Null for txt2img."""
    loras: list[JobLora]
    """LoRAs in the order in which they act."""
    output_format: str
    """File format of the images: `png`, `webp` or `jpeg`."""
    seeds: list[int]
    """One seed for each image, in order."""
    images: list[Annotated[JobImage | FilteredImage, Field(discriminator="state")]]
    """The images in the order of their seeds, those that a filter refused among them. Empty until
    the job ends."""
    progress: Progress | None
    """Progress. Null unless it runs or has succeeded."""
    queue_position: int | None = Field(
        description="Queued jobs that go first, counted to 1,000; null unless queued, and null in "
        "lists."
    )
    queue_position_exact: bool | None = Field(
        description="False: at least `queue_position` go first. Null with it."
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
    """Warnings; the job was accepted all the same."""
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

    @property
    def ready_images(self) -> list[JobImage]:
        """Those that no filter refused."""
        return [image for image in self.images if isinstance(image, JobImage)]


class Job(JobOptions, _JobFields):
    """A job. What does not apply is null."""

    controls: list[JobControl] = Field(  # type: ignore[assignment]  # says less
        default_factory=list, description="Its ControlNets, each with the image that it sees."
    )
    references: list[JobReference] = Field(  # type: ignore[assignment]  # says less
        default_factory=list, description="Images that it looks at, in the order in which they act."
    )
    hires: JobHires | None = Field(  # type: ignore[assignment]  # more than was asked for
        default=None, description="Its second pass. Null: it has none."
    )


class _DryRunFields(AnswerModel):
    """A dry run but for the options, which stand behind these fields."""

    valid: Literal[True] = Field(description="A request that breaks a rule gets its problem.")
    kind: Literal["txt2img", "img2img", "inpaint"]
    """`inpaint` if a part of an image is repainted, `img2img` if it starts from an image, else
    `txt2img`."""
    model: str
    """Name of the model it would use."""
    width: int
    """Width of the images, in pixels."""
    height: int
    """Height of the images, in pixels."""
    steps: int
    """Denoising steps asked for, per image."""
    executed_steps: int | None
    """Denoising steps that would run: fewer than `steps` where a `strength` leaves some out. Null:
    the model's family is not known yet, and they depend on it."""
    guidance_scale: float
    """Classifier-free guidance scale."""
    true_cfg_scale: float | None
    """Guidance by a second call (FLUX, Qwen-Image). Null: the model's own."""
    scheduler: str
    """Name of the scheduler."""
    strength: float | None
    """How far to leave the initial image, above 0 to 1. Null for txt2img."""
    resize_mode: ResizeMode | None
    """How the initial image would get the job's size. Null for txt2img."""
    loras: list[JobLora]
    """LoRAs in the order in which they would act."""
    num_images: int
    """Images it would make."""
    seeds: list[int] | None = Field(description="Null: they would be drawn at the submission.")
    cost: int = Field(
        description="Width × height × steps that run × images, the unit of quotas; "
        "a ControlNet adds 0.4 of that in its part of the steps."
    )
    eta: Eta | None = Field(description="If it were submitted now. Null without evidence.")
    warnings: list[JobWarning]
    """Warnings to read before submitting it."""


class JobDryRun(JobOptions, _DryRunFields):
    """A preview of a submission; nothing was kept, and nothing is promised."""

    controls: list[JobControl] = Field(  # type: ignore[assignment]  # says less
        default_factory=list, description="The ControlNets that it would have."
    )
    references: list[JobReference] = Field(  # type: ignore[assignment]  # says less
        default_factory=list, description="Images that it would look at."
    )
    hires: JobHires | None = Field(  # type: ignore[assignment]  # more than was asked for
        default=None, description="Its second pass. Null: it would have none."
    )


class ReproductionLinks(AnswerModel):
    """How to ask again."""

    again: str
    """POST here to keep waiting for the same job."""
    job: str
    """The job that makes the image again."""


class Reproduction(AnswerModel):
    """The result of making an image again; `verdict` is null while its job has not finished."""

    verdict: Literal["identical", "equivalent", "different"] | None = Field(
        description=(
            "identical: every pixel is equal; equivalent: no channel of a pixel differs by more "
            "than 8 of 255; different: some do."
        )
    )
    max_pixel_difference: int | None = Field(description="0 to 255.")
    reason: str | None
    """Why the image differs, or may differ. Null: there is nothing to explain."""
    image: Image | None = Field(description="The new image.")
    job: Job
    """The job that makes the image again."""
    links: ReproductionLinks
    """Links; they need the API key."""


class Inspection(AnswerModel):
    """The receipt in a file that Darkroom made."""

    receipt: dict[str, Any]
    """The receipt as it is in the file. It is the file's claim, not a proof."""
    stored: bool = Field(description="Whether this very file is one of your tenant's images.")
    image: Image | None
    """That image, if `stored`. Null otherwise."""
    job: dict[str, Any] = Field(description="The body to POST to /v1/jobs to make it again.")
    notes: list[str] = Field(
        description="Notes on what the body cannot express, e.g. a missing initial image."
    )
    provenance: Provenance
    """Marks in the file that a model made it, as `GET /v1/images/{id}/provenance`."""

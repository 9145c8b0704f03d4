"""What clients send and get for images, uploads and sessions."""

from typing import Any, Literal

from pydantic import Field

from api.core.serialization import AnswerModel, UtcTime
from api.jobs.schemas import Job, JobImage


class ImageLinks(AnswerModel):
    """Where to go on from an image; these need the API key."""

    self: str
    """This image."""
    content: str
    """Its file."""
    thumbnail: str
    """Its thumbnail."""
    receipt: str
    """How it was made."""
    job: str
    """The job that made it."""


class Image(JobImage):
    """A finished picture, wherever it came from."""

    job_id: str
    """The job that made it, `job_…`."""
    session_id: str
    """The session that it belongs to."""
    model: str
    """Name of the model that made it."""
    prompt: str
    """The prompt it was made from."""
    negative_prompt: str | None
    """What the image should not show. Null: none was given."""
    gpu_seconds: float
    """Device time it took, in seconds; images of one batch share theirs."""
    created_at: UtcTime
    """When it was finished."""
    links: ImageLinks
    """URLs of related resources. They need the API key."""


class ReproductionLinks(AnswerModel):
    """How to ask again."""

    again: str
    """POST here to go on waiting for the same job."""
    job: str
    """The job that makes the image again."""


class Reproduction(AnswerModel):
    """The result of making a picture again; `verdict` is null while its job has not finished."""

    verdict: Literal["identical", "equivalent", "different"] | None = Field(
        description=(
            "identical: every pixel is equal; equivalent: no channel of a pixel differs by more "
            "than 8 of 255; different: some do."
        )
    )
    max_pixel_difference: int | None = Field(description="0 to 255.")
    reason: str | None
    """Why the image differs, or may differ. Null: there is nothing to explain."""
    image: Image | None = Field(description="The new picture.")
    job: Job
    """The job that makes the image again."""
    links: ReproductionLinks
    """URLs to go on with. They need the API key."""


class Inspection(AnswerModel):
    """What a picture made by Darkroom says of itself."""

    receipt: dict[str, Any]
    """The receipt as it is in the file. It is the file's claim, not a proof."""
    stored: bool = Field(description="Whether this very file is one of your tenant's images.")
    image: Image | None
    """That image, if `stored`. Null otherwise."""
    job: dict[str, Any] = Field(description="The body to POST to /v1/jobs to make it again.")
    notes: list[str] = Field(description="What the body cannot say, e.g. a missing initial image.")


class Upload(AnswerModel):
    """A picture as it was kept: upright, RGB, PNG, without metadata."""

    id: str
    """`upl_…`. Pass it as `init_image` of a job."""
    width: int
    """In pixels, after the image was turned upright."""
    height: int
    """In pixels, after the image was turned upright."""
    content_type: str
    """The media type of the stored file: always `image/png`."""
    bytes: int
    """Size of the stored file, in bytes."""
    sha256: str
    """SHA-256 of the stored file, 64 lower-case hexadecimal digits."""
    url: str
    """Signed URL of the stored file. Needs no key and expires within 15 minutes."""
    created_at: UtcTime
    """When it was uploaded."""


class Deleted(AnswerModel):
    """What went. It cannot be brought back."""

    sessions: int
    """Sessions deleted."""
    jobs: int
    """Jobs deleted, with their attempts and events."""
    images: int
    """Images deleted, with their thumbnails."""
    prompts: int = Field(
        description="With their embeddings: those that no picture of yours is made from any more."
    )
    uploads: int
    """Uploads deleted."""
    objects: int = Field(description="Files in object storage: pictures and thumbnails.")
    objects_pending: bool = Field(
        description="Storage did not answer: the remaining files are removed within minutes."
    )


class SessionLinks(AnswerModel):
    """Where to go on from a session."""

    self: str
    """This session."""
    images: str
    """Its images, newest first."""


class Session(AnswerModel):
    """A folder of jobs and their pictures, made on first use."""

    id: str
    """The name that jobs gave as `session_id`."""
    created_at: UtcTime
    """When its first job was submitted."""
    jobs: int
    """Jobs in the session, in any state."""
    images: int
    """Finished images in the session."""
    last_image_at: UtcTime | None
    """When its latest image was made. Null: it has none yet."""
    links: SessionLinks
    """URLs of related resources."""


class HistoryImage(Image):
    """A picture of a session's history."""

    score: float | None = Field(description="How well it fits `q`, 0 to 1; null without one.")

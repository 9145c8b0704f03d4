"""What clients send and get for images."""

from typing import Any, Literal

from pydantic import Field

from api.jobs.schemas import Job, JobImage
from api.wire import AnswerModel, UtcTime


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

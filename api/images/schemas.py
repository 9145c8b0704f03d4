"""What clients send and get for images."""

from typing import Any, Literal

from pydantic import Field

from api.jobs.schemas import Job, JobImage
from api.wire import AnswerModel, UtcTime


class ImageLinks(AnswerModel):
    """Where to go on from an image; these need the API key."""

    self: str
    content: str
    thumbnail: str
    receipt: str
    job: str


class Image(JobImage):
    """A finished picture, wherever it came from."""

    job_id: str
    session_id: str
    model: str
    prompt: str
    negative_prompt: str | None
    gpu_seconds: float
    created_at: UtcTime
    links: ImageLinks


class ReproductionLinks(AnswerModel):
    """How to ask again."""

    again: str
    job: str


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
    image: Image | None = Field(description="The new picture.")
    job: Job
    links: ReproductionLinks


class Inspection(AnswerModel):
    """What a picture made by Darkroom says of itself."""

    receipt: dict[str, Any]
    stored: bool = Field(description="Whether this very file is one of your tenant's images.")
    image: Image | None
    job: dict[str, Any] = Field(description="The body to POST to /v1/jobs to make it again.")
    notes: list[str] = Field(description="What the body cannot say, e.g. a missing initial image.")

"""What clients get of sessions."""

from pydantic import Field

from api.images.schemas import Image
from api.wire import AnswerModel, UtcTime


class SessionLinks(AnswerModel):
    """Where to go on from a session."""

    self: str
    images: str


class Session(AnswerModel):
    """A folder of jobs and their pictures, made on first use."""

    id: str
    created_at: UtcTime
    jobs: int
    images: int
    last_image_at: UtcTime | None
    links: SessionLinks


class HistoryImage(Image):
    """A picture of a session's history."""

    score: float | None = Field(description="How well it fits `q`, 0 to 1; null without one.")

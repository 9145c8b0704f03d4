"""What clients get of sessions."""

from pydantic import Field

from api.images.schemas import Image
from api.wire import AnswerModel, UtcTime


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

"""What clients get for uploads."""

from api.wire import AnswerModel, UtcTime


class Upload(AnswerModel):
    """A picture as it was kept: upright, RGB, PNG, without metadata."""

    id: str
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str
    url: str
    created_at: UtcTime

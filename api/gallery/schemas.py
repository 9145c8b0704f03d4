"""What clients get when they throw something away."""

from pydantic import Field

from api.wire import AnswerModel


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

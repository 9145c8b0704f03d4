"""Sessions, search results and recommendations."""

from dataclasses import dataclass
from datetime import datetime

from darkroom.decoding import Document
from darkroom.types.images import Image


@dataclass(frozen=True, kw_only=True)
class MadeWith(Document):
    """The main settings of a picture's receipt."""

    kind: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    strength: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hit(Document):
    """A picture whose prompt fits the query."""

    score: float | None
    """0 to 1; None without a query."""
    similarity: float | None
    """Cosine of the two texts' embeddings, -1 to 1; None without a query."""
    prompt: str
    image: Image
    made_with: MadeWith = MadeWith()


@dataclass(frozen=True, kw_only=True)
class Session(Document):
    """A folder of jobs and their pictures, made on first use."""

    id: str
    created_at: datetime
    jobs: int
    images: int
    last_image_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class HistoryImage(Image):
    """A picture of a session's history."""

    score: float | None = None
    """How well it fits the query, 0 to 1; None without one."""


@dataclass(frozen=True, kw_only=True)
class Recommendation(Document):
    """A prompt worth trying."""

    prompt: str
    score: float
    reason: str
    starter: bool = False
    """Shipped with Darkroom, not a prompt of your tenant."""
    image: Image | None = None
    """The prompt's best picture; None for a starter."""

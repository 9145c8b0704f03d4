"""What narrows a search, beside the words: the facts of an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True)
class Filters:
    """All of these must hold; None asks nothing."""

    session_id: str | None = None
    model: str | None = None
    seed: int | None = None
    kind: str | None = None
    width: int | None = None
    height: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    starred: bool | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the job."""
    without_image: UUID | None = None
    """The picture that others are compared with."""

    @property
    def narrows(self) -> bool:
        """Whether prompts can be left out; one picture fewer does not count."""
        asked = (
            self.session_id,
            self.model,
            self.seed,
            self.kind,
            self.width,
            self.height,
            self.created_after,
            self.created_before,
            self.starred,
        )
        return bool(self.metadata) or any(fact is not None for fact in asked)

    def facts(self) -> tuple[object, ...]:
        """Everything that is asked, for binding a cursor to it."""
        own = {**vars(self), "metadata": sorted(self.metadata.items())}
        return tuple(own.items())

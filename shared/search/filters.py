"""What narrows a search, beside the words: the facts of an image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Uuid, cast, func, select
from sqlalchemy.dialects.postgresql import JSONB

from shared.gallery.models import Image
from shared.kept_statements import given


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
    def asks(self) -> frozenset[str]:
        """Which of them ask something: SQL is built for these, and given the `values`."""
        asked = {name for name, value in vars(self).items() if value not in (None, {})}
        if self.starred is False:
            asked ^= {"starred", "not_starred"}
        return frozenset(asked)

    @property
    def narrows(self) -> bool:
        """Whether prompts can be left out; one picture fewer does not count."""
        return narrows(self.asks)

    def values(self) -> dict[str, Any]:
        """What `image_conditions` must be given."""
        return {f"filter_{name}": getattr(self, name) for name in self.asks & _VALUED}

    def facts(self) -> tuple[object, ...]:
        """Everything that is asked, for binding a cursor to it."""
        own = {**vars(self), "metadata": sorted(self.metadata.items())}
        return tuple(own.items())


_EQUAL = ("session_id", "model", "seed", "kind", "width", "height")
_VALUED = frozenset((*_EQUAL, "created_after", "created_before", "metadata", "without_image"))


def narrows(asks: frozenset[str]) -> bool:
    """Whether prompts can be left out."""
    return bool(asks - {"without_image"})


def image_conditions(asks: frozenset[str], image: Any = Image) -> list[ColumnElement[bool]]:
    """What an image must be, given `tenant` and the filters' `values`."""
    conditions: list[ColumnElement[bool]] = [image.tenant_id == given("tenant", Uuid)]

    def value(name: str, column: Any) -> Any:
        return given(f"filter_{name}", column.type)

    for name in _EQUAL:
        if name in asks:
            column = getattr(image, name)
            conditions.append(column == value(name, column))
    if "starred" in asks:
        conditions.append(image.starred)
    if "not_starred" in asks:
        conditions.append(~image.starred)
    if "created_after" in asks:
        conditions.append(image.created_at >= value("created_after", image.created_at))
    if "created_before" in asks:
        conditions.append(image.created_at < value("created_before", image.created_at))
    if "metadata" in asks:
        wanted = cast(given("filter_metadata", JSONB), JSONB)
        jobs = func.darkroom_jobs_with(wanted, type_=Uuid)
        conditions.append(image.job_id.in_(select(jobs.column_valued("job"))))
    if "without_image" in asks:
        conditions.append(image.id != value("without_image", image.id))
    return conditions

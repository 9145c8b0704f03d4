"""What is searched for: the shape that a statement is built for, and the values it is given."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.search.filters import Filters
from shared.search.fusion import QueryVector
from shared.search.lexical import Lexical, all_of, any_of, tsquery_of


@dataclass(frozen=True)
class Position:
    """Where a page ended: in the order of score, prompt, image, each descending."""

    score: float
    prompt_id: UUID
    image_id: UUID


@dataclass(frozen=True)
class Shape:
    """All of a question that its statement's text depends on."""

    asks: frozenset[str]
    """Filters; see `Filters.asks`."""
    spaces: tuple[tuple[str, int], ...]
    """Embedding models of the query's vectors, each with its dimension."""
    words: int
    rare: bool
    """Whether some of the words are rare."""
    has_min_score: bool


@dataclass(frozen=True)
class Question:
    """What is searched for, the same on every page."""

    tenant_id: UUID
    filters: Filters
    vectors: tuple[QueryVector, ...]
    phrase: str
    lexical: Lexical
    min_score: float | None = None

    @property
    def shape(self) -> Shape:
        """Questions of the same shape have the same statement."""
        return Shape(
            self.filters.asks,
            tuple((vector.model, vector.dimensions) for vector in self.vectors),
            len(self.lexical.words),
            bool(self.lexical.rare),
            self.min_score is not None,
        )

    def values(self) -> dict[str, Any]:
        """What the statement must be given."""
        values: dict[str, Any] = {
            "tenant": self.tenant_id,
            "phrase": self.phrase,
            **self.filters.values(),
        }
        for number, vector in enumerate(self.vectors):
            values[f"vector_{number}"] = vector.text
        for number, (word, share) in enumerate(self.lexical.shares()):
            values[f"word_{number}"] = tsquery_of(word.text)
            values[f"share_{number}"] = share
        if self.lexical.rare:
            values["all_rare"] = all_of(self.lexical.rare)
            values["any_rare"] = any_of(self.lexical.rare)
        if self.min_score is not None:
            values["min_score"] = self.min_score
        return values

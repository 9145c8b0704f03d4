"""What is searched for: the shape that a statement is built for, and the values it is given."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

from shared.search.ranking import Filters, QueryVector
from shared.search.terms import Lexical, Word, grams, tsquery_of


class Rank(StrEnum):
    """Order of the entries."""

    RELEVANCE = "relevance"
    """The score: meaning and words."""
    SIMILARITY = "similarity"
    """The cosine alone."""


class Phase(IntEnum):
    """Which rows a search is going through; see `shared.search.queries`."""

    EXACT = 1
    """All that the filters leave, in exact order."""
    ANN = 2
    """The candidates."""
    FALLBACK = 3
    """All that the filters leave and that were no candidates, in exact order."""


@dataclass(frozen=True)
class Position:
    """Where a page ended: in the order of score (or similarity), prompt, image, each descending."""

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
    grams: int
    rare: bool
    """Whether some of the words are rare."""
    rare_grams: bool
    spelled: bool
    """Whether the query has characters of scripts without spaces."""
    has_min_score: bool
    rank: Rank


@dataclass(frozen=True)
class SearchQuery:
    """What is searched for, the same on every page."""

    tenant_id: UUID
    filters: Filters
    vectors: tuple[QueryVector, ...]
    phrase: str
    lexical: Lexical
    min_score: float | None = None
    rank: Rank = Rank.RELEVANCE

    @property
    def shape(self) -> Shape:
        """Questions of the same shape have the same statement."""
        return Shape(
            self.filters.asks,
            tuple((vector.model, vector.dimensions) for vector in self.vectors),
            len(self._words(self.lexical.words)),
            len(self._grams(self.lexical.words)),
            bool(self._words(self.lexical.rare)),
            bool(self._grams(self.lexical.rare)),
            bool(grams(self.phrase)),
            self.min_score is not None,
            self.rank,
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
        share_of = dict(self.lexical.shares())
        for number, word in enumerate(self._words(self.lexical.words)):
            values[f"word_{number}"] = tsquery_of(word.text)
            values[f"share_{number}"] = share_of[word]
        for number, gram in enumerate(self._grams(self.lexical.words)):
            values[f"gram_{number}"] = gram.text
            values[f"gram_share_{number}"] = share_of[gram]
        if rare := self._words(self.lexical.rare):
            parts = [tsquery_of(word.text) for word in rare]
            values["all_rare"] = " & ".join(parts)
            values["any_rare"] = " | ".join(parts)
        if rare := self._grams(self.lexical.rare):
            values["rare_grams"] = [gram.text for gram in rare]
            values["rare_patterns"] = [f"%{gram.text}%" for gram in rare]
        if spelled := grams(self.phrase):
            values["grams"] = spelled
        if self.min_score is not None:
            values["min_score"] = self.min_score
        return values

    @staticmethod
    def _words(words: tuple[Word, ...]) -> tuple[Word, ...]:
        return tuple(word for word in words if not word.is_gram)

    @staticmethod
    def _grams(words: tuple[Word, ...]) -> tuple[Word, ...]:
        return tuple(word for word in words if word.is_gram)

"""What narrows a search, and the score of a result, as SQL."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Double,
    Text,
    Uuid,
    all_,
    and_,
    case,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, TSQUERY

from shared.core.database import param
from shared.images.models import PUNCTUATION, Image, Prompt


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
    """The image that others are compared with."""

    @property
    def asks(self) -> frozenset[str]:
        """Which of them ask something: SQL is built for these, and given the `values`."""
        active = {name for name, value in vars(self).items() if value not in (None, {})}
        if self.starred is False:
            active ^= {"starred", "not_starred"}
        return frozenset(active)

    @property
    def narrows(self) -> bool:
        """Whether prompts can be left out; one image fewer does not count."""
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


def image_conditions(
    asks: frozenset[str], *, reproductions: bool = False
) -> list[ColumnElement[bool]]:
    """What an image must be, given `tenant` and the filters' `values`.

    `reproductions`: those, too. For counts of thousands, which an index alone can answer then.
    """
    conditions: list[Any] = [Image.tenant_id == param("tenant", Uuid)]

    def value(name: str, column: Any) -> Any:
        return param(f"filter_{name}", column.type)

    if not reproductions:
        conditions.append(Image.reproduces.is_(None))
    for name in _EQUAL:
        if name in asks:
            column = getattr(Image, name)
            conditions.append(column == value(name, column))
    if "starred" in asks:
        conditions.append(Image.starred)
    if "not_starred" in asks:
        conditions.append(~Image.starred)
    for name, column, compare in (
        ("created_after", Image.created_at, operator.ge),
        ("created_before", Image.created_at, operator.lt),
        ("without_image", Image.id, operator.ne),
    ):
        if name in asks:
            conditions.append(compare(column, value(name, column)))
    if "metadata" in asks:
        wanted = cast(param("filter_metadata", JSONB), JSONB)
        jobs = func.darkroom_jobs_with(wanted, type_=Uuid)
        conditions.append(Image.job_id.in_(select(jobs.column_valued("job"))))
    return conditions


# ``0.55 · cosine + 0.2 · share of the query's words + 0.25 if the phrase, or every rare word, is
# there``. A weighted sum and not a fusion of ranks: see docs/adr/0007-hybrid-search.md, which
# also has the measurements.

MEANING = 0.55
WORDS = 0.2
EXACT = 0.25

DECIMALS = 6
"""Scores are rounded, so that a page's last score is found again bit for bit."""


@dataclass(frozen=True)
class QueryVector:
    """A query in the space of one embedding model. `text` is pgvector's form: ``[0.1,…]``."""

    model: str
    dimensions: int
    text: str

    @property
    def says_something(self) -> bool:
        """False for the vector of a text of which the model knows nothing: all zeros."""
        return any(digit in self.text for digit in "123456789")


def similarity(vectors: Mapping[str, ColumnElement[str]]) -> ColumnElement[float]:
    """The cosine, -1 … 1; 0 for a prompt whose embedding is of none of these models, or zero.

    `vectors` are texts by the names of their models.
    """
    if not vectors:
        return literal(0.0, Double)
    return case(
        *((Prompt.embedding_model == model, _cosine(vector)) for model, vector in vectors.items()),
        else_=literal(0.0, Double),
    )


def _cosine(vector: ColumnElement[str]) -> ColumnElement[float]:
    # That of a vector of zeros is not a number, which is greater than all numbers to Postgres.
    known = func.nullif(cast(1 - distance(vector), Double), literal_column("'NaN'::float8"))
    return func.coalesce(known, literal(0.0, Double), type_=Double)


def distance(vector: ColumnElement[str]) -> ColumnElement[Any]:
    """The cosine distance, 0 … 2, by the full vectors."""
    return Prompt.embedding.op("<=>", return_type=Double())(cast(vector, Vector))


def words_share(
    words: Iterable[tuple[ColumnElement[str], ColumnElement[float]]],
    grams: Iterable[tuple[ColumnElement[str], ColumnElement[float]]],
) -> ColumnElement[float]:
    """How much of the query's weight the prompt's words carry, 0 … 1.

    Words, each as a tsquery, and grams, each with what it carries.
    """
    matches = [(holds(word), share) for word, share in words]
    matches += [(spells(gram), share) for gram, share in grams]
    total: ColumnElement[float] = literal(0.0, Double)
    for is_there, share in matches:
        total = total + case((is_there, share), else_=literal(0.0, Double))
    return total


def spells(part: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a prompt has a text anywhere in it, whatever the case."""
    return func.strpos(func.lower(Prompt.text), func.lower(part)) > 0


def is_exact(
    phrase: ColumnElement[str],
    rare: ColumnElement[str] | None,
    rare_grams: ColumnElement[Any] | None,
    *,
    spelled: bool,
) -> ColumnElement[bool]:
    """The exact phrase, or every rare word and gram of it.

    `rare` is a tsquery, `rare_grams` an array of patterns; None for no such. `spelled`: the phrase
    has parts that are no words to Postgres.
    """
    whole = phrase_query(phrase)
    if rare is not None and rare_grams is None:
        # One look at a row's words in place of two.
        whole = whole.op("||", return_type=TSQUERY())(cast(rare, TSQUERY))
    matches: ColumnElement[bool] = Prompt.words.op("@@", return_type=Boolean())(whole)
    if spelled:
        matches = or_(matches, spells(phrase))
    if rare_grams is not None:
        every = Prompt.text.like(all_(rare_grams))
        matches = or_(matches, every if rare is None else and_(every, holds(rare)))
    return matches


def holds(words: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a prompt has what a tsquery asks."""
    return Prompt.words.op("@@", return_type=Boolean())(cast(words, TSQUERY))


def fused(
    meaning: ColumnElement[float], words: ColumnElement[float], exact: ColumnElement[bool]
) -> ColumnElement[float]:
    """The score."""
    whole = (
        MEANING * func.greatest(meaning, 0.0)
        + WORDS * words
        + case((exact, literal(EXACT, Double)), else_=literal(0.0, Double))
    )
    return rounded(whole)


def rounded(score: ColumnElement[Any]) -> ColumnElement[float]:
    """To the decimals of a cursor. Not by Numeric's round, which takes as long as a distance."""
    scale = literal(10.0**DECIMALS, Double)
    return cast(func.round(cast(score, Double) * scale) / scale, Double)


def phrase_query(phrase: ColumnElement[str]) -> ColumnElement[Any]:
    """The words of a text, one after the other."""
    return func.phraseto_tsquery(literal_column("'simple'"), spaced(phrase), type_=TSQUERY)


def spaced(words: ColumnElement[str]) -> ColumnElement[str]:
    """A text of a query with its words apart, as those of prompts are."""
    return func.regexp_replace(words, literal_column(f"'{PUNCTUATION}'"), " ", "g", type_=Text)

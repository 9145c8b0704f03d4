"""One score out of meaning and words, computed in SQL, 0 … 1.

``0.55 · cosine + 0.2 · share of the query's words + 0.25 if the phrase, or every rare word, is
there``. A weighted sum and not a fusion of ranks: see docs/adr/0013-hybrid-search.md, which also
has the measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import ColumnElement, Double, Text, and_, case, cast, func, literal, or_
from sqlalchemy.dialects.postgresql import TSQUERY

from shared.gallery.models import Prompt
from shared.search.lexical import Lexical, Word, tsquery_of

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


def similarity(vectors: Sequence[QueryVector]) -> ColumnElement[float]:
    """The cosine, -1 … 1; 0 for a prompt whose embedding is of none of these models."""
    if not vectors:
        return literal(0.0, Double)
    return case(
        *(
            (
                Prompt.embedding_model == vector.model,
                cast(1 - distance(vector), Double),
            )
            for vector in vectors
        ),
        else_=literal(0.0, Double),
    )


def distance(vector: QueryVector) -> ColumnElement[Any]:
    """The cosine distance, 0 … 2, by the full vectors."""
    return Prompt.embedding.op("<=>", return_type=Double())(
        cast(literal(vector.text, Text), Vector)
    )


def words_share(lexical: Lexical) -> ColumnElement[float]:
    """How much of the query's weight the prompt's words carry, 0 … 1."""
    total: ColumnElement[float] = literal(0.0, Double)
    for word, share in lexical.shares():
        total = total + case((_holds(word), literal(share, Double)), else_=literal(0.0, Double))
    return total


def is_exact(phrase: str, lexical: Lexical) -> ColumnElement[bool]:
    """The phrase as it stands, or every rare word of it."""
    whole: ColumnElement[bool] = Prompt.words.op("@@")(phrase_query(phrase))
    if not lexical.rare:
        return whole
    return or_(whole, and_(*(_holds(word) for word in lexical.rare)))


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


def phrase_query(phrase: str) -> ColumnElement[Any]:
    """The words of a text, one after the other."""
    return func.phraseto_tsquery("simple", phrase, type_=TSQUERY)


def word_query(words: Sequence[Word]) -> str:
    """A tsquery for any of the words."""
    return " | ".join(tsquery_of(word.text) for word in words)


def _holds(word: Word) -> ColumnElement[bool]:
    return Prompt.words.op("@@")(cast(literal(tsquery_of(word.text), Text), TSQUERY))

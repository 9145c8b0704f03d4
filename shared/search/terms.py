"""How common each word is among a tenant's prompts, and how much it weighs in a query."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    ScalarSelect,
    Select,
    Text,
    Uuid,
    any_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSQUERY, array

from shared.core.database import cached_query, param, with_params
from shared.images.models import Prompt
from shared.search.ranking import spaced

SAMPLE = 1_000
"""The newest prompts, by which a word is judged to be common."""

COMMON_IN_SAMPLE = 10

MOST_COMMON = 1_000
"""Words that are taken for common at most: they travel with every search."""


def term_statistics(tenant_id: UUID, up_to: int) -> Select[int, float, int, dict[str, int]]:
    """(prompts of the tenant, of the system, in the sample, common words by how many hold them).

    The tenant's are counted up to `up_to`, the system's estimated (-1: not yet). Words are only
    looked at in a full sample: among fewer prompts each can be counted.
    """
    return with_params(_term_statistics(), tenant=tenant_id, up_to=up_to, sample=SAMPLE)


@cached_query()
def _term_statistics() -> Select[int, float, int, dict[str, int]]:
    own = Prompt.tenant_id == param("tenant", Uuid)
    mine = select(literal(1)).where(own).limit(param("up_to", Integer)).subquery()
    size: Select[float] = (
        select(literal_column("reltuples", Float))
        .select_from(text("pg_class"))
        .where(text("oid = 'prompts'::regclass"))
    )
    wanted = param("sample", Integer)
    newest = select(Prompt.words).where(own).order_by(Prompt.id.desc())
    sample = newest.limit(wanted).cte("sample")
    sampled = select(func.count()).select_from(sample).scalar_subquery()
    held = select(
        func.unnest(func.tsvector_to_array(sample.c.words), type_=Text).label("word")
    ).subquery("held")
    hits = func.count().label("hits")
    common = (
        select(held.c.word, hits)
        .group_by(held.c.word)
        .having(func.count() >= COMMON_IN_SAMPLE)
        .order_by(hits.desc())
        .limit(MOST_COMMON)
        .subquery("common")
    )
    words = select(
        func.coalesce(func.jsonb_object_agg(common.c.word, common.c.hits), cast({}, JSONB))
    ).scalar_subquery()
    return select(
        select(func.count()).select_from(mine).scalar_subquery(),
        size.scalar_subquery(),
        sampled,
        cast(case((sampled == wanted, words), else_=cast({}, JSONB)), JSONB),
    )


def count_grams(grams: ColumnElement[Any], up_to: int) -> ScalarSelect[dict[str, int]]:
    """The same of an array of grams, none of which is common."""
    wanted = func.unnest(grams, type_=Text).table_valued(column("gram", Text), name="wanted_gram")
    wanted = wanted.render_derived()
    held = prompts_spelling(array([wanted.c.gram]), literal(True), up_to)
    count = select(func.count()).select_from(held).scalar_subquery()
    return select(
        func.coalesce(func.jsonb_object_agg(wanted.c.gram, count), cast({}, JSONB), type_=JSONB)
    ).scalar_subquery()


def prompts_spelling(
    grams: ColumnElement[Any], every: ColumnElement[bool], most: int | ColumnElement[int]
) -> Any:
    """The ids of the tenant's prompts that have every one, or any, of an array of grams."""
    wanted = cast(grams, ARRAY(Text))
    prompts = func.darkroom_prompts_spelling(wanted, every, cast(most, Integer))
    return prompts.table_valued(column("id", Uuid), name="found").render_derived()


def count_words(
    query: ColumnElement[str], common: ColumnElement[Any], up_to: int
) -> ScalarSelect[dict[str, int | None]]:
    """By each word of the query how many prompts of the transaction's tenant hold it, as JSON.

    Counted up to `up_to`; null for the words of the array `common`.
    """
    words = func.tsvector_to_array(func.to_tsvector(literal_column("'simple'"), spaced(query)))
    wanted = func.unnest(words, type_=Text).table_valued(column("word", Text), name="wanted")
    wanted = wanted.render_derived()
    held = prompts_with(cast(_tsquery_of(wanted.c.word), TSQUERY), up_to)
    count = select(func.count()).select_from(held).scalar_subquery()
    counted = case((wanted.c.word == any_(common), null()), else_=count)
    return select(
        func.coalesce(func.jsonb_object_agg(wanted.c.word, counted), cast({}, JSONB), type_=JSONB)
    ).scalar_subquery()


def prompts_with(wanted: ColumnElement[Any], most: int | ColumnElement[int]) -> Any:
    """The ids of the tenant's prompts that a tsquery finds, by the index of words."""
    prompts = func.darkroom_prompts_with(wanted, cast(most, Integer))
    return prompts.table_valued(column("id", Uuid), name="found").render_derived()


def _tsquery_of(word: ColumnElement[str]) -> ColumnElement[str]:
    """As `shared.search.terms.tsquery_of`, in SQL."""
    escaped = func.replace(func.replace(word, "\\", "\\\\"), "'", "''")
    return literal("'").concat(escaped).concat("'")


# Words that no prompt holds count, too: where most of a query is such, its other words say
# little.
#
# Weights are those of BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework",
# 2009): ``idf = ln(1 + (n - df + 0.5) / (df + 0.5))`` with ``n`` prompts of which ``df`` hold the
# word.

MAX_WORDS = 8
"""The weightiest words of a query; what comes after them hardly changes an order."""

MAX_WORD_CHARACTERS = 512

RARE_UP_TO = 2_000
"""Prompts that rare words may add to the candidates. Words are counted no further: what more
prompts hold is not rare, however many there are."""

GRAMS_UP_TO = 500
"""The same for grams, whose counting costs more."""

MAX_GRAMS = 24
"""The first of a query that are counted."""

SPACELESS = (
    # Thai, Lao, Tibetan, Burmese; Khmer; Tai Le to Khmer symbols; Tai Tham; Balinese; Javanese.
    ("\u0e00", "\u109f"), ("\u1780", "\u17ff"), ("\u1950", "\u19ff"), ("\u1a20", "\u1aaf"),
    ("\u1b00", "\u1b7f"), ("\ua980", "\ua9ff"), ("\uaa60", "\uaadf"),
    # Kana and Chinese characters, with their iteration marks, but without punctuation.
    ("\u3005", "\u3007"), ("\u3041", "\u3096"), ("\u30a1", "\u30fa"), ("\u30fc", "\u312f"),
    ("\u31a0", "\u31bf"), ("\u31f0", "\u31ff"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"),
    ("\uf900", "\ufaff"), ("\uff66", "\uff9f"), ("\U00020000", "\U0003ffff"),
    # Pictographs, which Postgres' parser drops.
    ("\u2600", "\u27bf"), ("\U0001f300", "\U0001faff"),
)  # fmt: skip
"""Ranges of characters that are written without spaces between words."""

SPACELESS_CLASS = "[" + "".join(f"{first}-{last}" for first, last in SPACELESS) + "]"
"""The same as a regular expression, to Python and to Postgres."""

_RUN = re.compile(SPACELESS_CLASS + "+")
_RARE_SHARE = 0.002
_RARE_COUNT = 2

_JUDGED_FROM = 50
"""Prompts from which on it means something that a word is rare."""

_SCALE = 255


@dataclass(frozen=True)
class Word:
    """One word of a query. `weight` is 1 … 255 and relative to the others."""

    text: str
    weight: int
    rare: bool

    @property
    def is_gram(self) -> bool:
        """Whether it is found anywhere in a text, and not as a word."""
        return _RUN.match(self.text) is not None


@dataclass(frozen=True)
class Lexical:
    """The words of a query that count, heaviest first; the same on every page of a search."""

    words: tuple[Word, ...] = ()
    whole: int = 0
    """The weight of `words` and of those that nobody used."""

    @property
    def rare(self) -> tuple[Word, ...]:
        """The words that alone say what is meant."""
        return tuple(word for word in self.words if word.rare)

    def shares(self) -> list[tuple[Word, float]]:
        """Each word with its share of the whole weight; they sum to 1 at most."""
        return [(word, word.weight / self.whole) for word in self.words]


def idf_weights(counts: Mapping[str, int], prompts: int) -> Lexical:
    """Weigh words by how many of `prompts` hold each, and choose among those that some hold."""
    held = {word: min(count, prompts) for word, count in counts.items()}
    idf = {
        word: math.log1p((prompts - count + 0.5) / (count + 0.5)) for word, count in held.items()
    }
    known = [word for word in idf if held[word] and len(word) <= MAX_WORD_CHARACTERS]
    if not known:
        return Lexical()
    heaviest = max(idf.values())
    weights = {word: max(1, round(_SCALE * share / heaviest)) for word, share in idf.items()}
    chosen = sorted(known, key=lambda word: (-idf[word], word))[:MAX_WORDS]
    unheard = (weight for word, weight in weights.items() if not held[word])
    return Lexical(
        tuple(Word(word, weights[word], _is_rare(word, held[word], prompts)) for word in chosen),
        sum(weights[word] for word in chosen) + sum(unheard),
    )


def _is_rare(word: str, count: int, prompts: int) -> bool:
    if prompts < _JUDGED_FROM:
        return False
    bound = GRAMS_UP_TO if _RUN.match(word) else RARE_UP_TO
    return count <= min(max(_RARE_COUNT, _RARE_SHARE * prompts), bound)


def grams(text: str) -> list[str]:
    """Pairs of neighbouring characters of scripts without spaces; a lone character as it is.

    What a search engine that knows no dictionary takes for the words of such scripts.
    """
    pairs: dict[str, None] = {}
    for run in _RUN.findall(text):
        pairs |= dict.fromkeys([run[at : at + 2] for at in range(len(run) - 1)] or [run])
    return list(pairs)[:MAX_GRAMS]


def without_grams(text: str) -> str:
    """A text's other words."""
    return _RUN.sub(" ", text)


def tsquery_of(word: str) -> str:
    """A word as a tsquery that means just this word, whatever characters it has."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"

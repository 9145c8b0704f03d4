"""SQL about all prompts of a tenant: how many there are, and how common words are among them."""

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

from shared.gallery.models import Prompt
from shared.kept_statements import built_once, given, with_given
from shared.search.fusion import spaced

SAMPLE = 1_000
"""The newest prompts, by which a word is judged to be common."""
COMMON_IN_SAMPLE = 10
MOST_COMMON = 1_000
"""Words that are taken for common at most: they travel with every search."""


def take_census(tenant_id: UUID, up_to: int) -> Select[int, float, int, dict[str, int]]:
    """(prompts of the tenant, of the system, in the sample, common words by how many hold them).

    The tenant's are counted up to `up_to`, the system's estimated (-1: not yet). Words are only
    looked at in a full sample: among fewer prompts each can be counted.
    """
    return with_given(_take_census(), tenant=tenant_id, up_to=up_to, sample=SAMPLE)


@built_once()
def _take_census() -> Select[int, float, int, dict[str, int]]:
    own = Prompt.tenant_id == given("tenant", Uuid)
    mine = select(literal(1)).where(own).limit(given("up_to", Integer)).subquery()
    size: Select[float] = (
        select(literal_column("reltuples", Float))
        .select_from(text("pg_class"))
        .where(text("oid = 'prompts'::regclass"))
    )
    wanted = given("sample", Integer)
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
    found = func.darkroom_prompts_spelling(wanted, every, cast(most, Integer))
    return found.table_valued(column("id", Uuid), name="found").render_derived()


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
    found = func.darkroom_prompts_with(wanted, cast(most, Integer))
    return found.table_valued(column("id", Uuid), name="found").render_derived()


def _tsquery_of(word: ColumnElement[str]) -> ColumnElement[str]:
    """As `shared.search.lexical.tsquery_of`, in SQL."""
    escaped = func.replace(func.replace(word, "\\", "\\\\"), "'", "''")
    return literal("'").concat(escaped).concat("'")

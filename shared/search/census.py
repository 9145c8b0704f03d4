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
from sqlalchemy.dialects.postgresql import JSONB, TSQUERY

from shared.gallery.models import Prompt

SAMPLE = 1_000
"""The newest prompts, by which a word is judged to be common."""
COMMON_IN_SAMPLE = 10


def take_census(tenant_id: UUID, up_to: int) -> Select[int, float, int, dict[str, int]]:
    """(prompts of the tenant, of the system, in the sample, common words by how many hold them).

    The tenant's are counted up to `up_to`, the system's estimated (-1: not yet). Words are only
    looked at in a full sample: among fewer prompts each can be counted.
    """
    mine = select(literal(1)).where(Prompt.tenant_id == tenant_id).limit(up_to).subquery()
    size: Select[float] = (
        select(literal_column("reltuples", Float))
        .select_from(text("pg_class"))
        .where(text("oid = 'prompts'::regclass"))
    )
    sample = (
        select(Prompt.words)
        .where(Prompt.tenant_id == tenant_id)
        .order_by(Prompt.id.desc())
        .limit(SAMPLE)
        .cte("sample")
    )
    sampled = select(func.count()).select_from(sample).scalar_subquery()
    held = select(
        func.unnest(func.tsvector_to_array(sample.c.words), type_=Text).label("word")
    ).subquery("held")
    common = (
        select(held.c.word, func.count().label("hits"))
        .group_by(held.c.word)
        .having(func.count() >= COMMON_IN_SAMPLE)
        .subquery("common")
    )
    words = select(
        func.coalesce(func.jsonb_object_agg(common.c.word, common.c.hits), cast({}, JSONB))
    ).scalar_subquery()
    return select(
        select(func.count()).select_from(mine).scalar_subquery(),
        size.scalar_subquery(),
        sampled,
        case((sampled == SAMPLE, words), else_=cast({}, JSONB)).cast(JSONB),
    )


def count_words(
    query: ColumnElement[str], common: ColumnElement[Any], up_to: int
) -> ScalarSelect[dict[str, int | None]]:
    """By each word of the query how many prompts of the transaction's tenant hold it, as JSON.

    Counted up to `up_to`; null for the words of the array `common`.
    """
    words = func.tsvector_to_array(func.to_tsvector(literal_column("'simple'"), query))
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

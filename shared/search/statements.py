"""SQL of search: count what a filter leaves, gather candidates, order them, page through them.

A few rows are ordered exactly; many are first cut down to candidates by an HNSW index and by the
index of words. `EXACT_UP_TO` is the border; both sides end in the same `page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    Uuid,
    cast,
    column,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    union,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSQUERY
from sqlalchemy.orm import aliased
from sqlalchemy.sql.expression import CTE
from sqlalchemy.sql.selectable import CompoundSelect

from shared.gallery.models import Image, Prompt
from shared.search import fusion
from shared.search.filters import Filters
from shared.search.fusion import QueryVector
from shared.search.index import PROMPTS
from shared.search.lexical import Lexical, tsquery_of

EXACT_UP_TO = 20_000
"""Rows that are ordered exactly. An HNSW index that must find its rows behind a filter that keeps
1 in 100 takes longer and loses some (docs/adr/0013)."""
CANDIDATES = 200
"""The nearest prompts that an HNSW search looks at; a page has at most as many entries."""
SAMPLE = 1_000
"""The newest prompts, by which a word is judged to be common."""
COMMON_IN_SAMPLE = 10
RARE_UP_TO = 2_000
"""Prompts that the words of a query may add to the candidates, each of its two ways."""

Hits = Select[Image, str, UUID, float, float]


@dataclass(frozen=True)
class Position:
    """Where a page ended: in the order of score, prompt, image, each descending."""

    score: float
    prompt_id: UUID
    image_id: UUID


@dataclass(frozen=True)
class Question:
    """What is searched for, the same on every page."""

    tenant_id: UUID
    filters: Filters
    vectors: tuple[QueryVector, ...]
    phrase: str
    lexical: Lexical
    min_score: float | None = None


def prepare(tenant_id: UUID, filters: Filters) -> Select[int, float, *tuple[str, ...]]:
    """(rows, prompts of the system, …): what the filters leave, counted up to the border.

    Also sets, for this transaction, how HNSW indexes are searched.
    """
    if filters.narrows:
        rows = select(literal(1)).where(*image_conditions(tenant_id, filters))
    else:
        rows = select(literal(1)).where(Prompt.tenant_id == tenant_id)
    found = rows.limit(EXACT_UP_TO + 1).subquery()
    size: Select[float] = (
        select(literal_column("reltuples", Float))
        .select_from(text("pg_class"))
        .where(text("oid = 'prompts'::regclass"))
    )
    return select(
        select(func.count()).select_from(found).scalar_subquery(),
        size.scalar_subquery(),
        *how_indexes_are_searched(),
    )


def how_indexes_are_searched() -> tuple[ColumnElement[str], ...]:
    """Settings of the transaction, as columns of a query that is made anyway."""
    return (
        func.set_config("hnsw.ef_search", str(CANDIDATES), True),
        # Go on behind a filter until there are enough; the order is put right afterwards.
        func.set_config("hnsw.iterative_scan", "relaxed_order", True),
        # Compiling takes longer than any of these statements.
        func.set_config("jit", "off", True),
        # The default supposes a disk whose heads must move: for a session with a tenth of all
        # prompts Postgres would read all of them.
        func.set_config("random_page_cost", "1.1", True),
    )


def sample_words(tenant_id: UUID, query: str) -> Select[str, int, int]:
    """(word of the query, how many of the newest prompts hold it, how many were looked at)."""
    wanted = select(
        func.unnest(func.tsvector_to_array(func.to_tsvector("simple", query))).label("word")
    ).cte("wanted")
    sample = (
        select(Prompt.words)
        .where(Prompt.tenant_id == tenant_id)
        .order_by(Prompt.id.desc())
        .limit(SAMPLE)
        .cte("sample")
        .prefix_with("MATERIALIZED")
    )
    word = func.unnest(func.tsvector_to_array(sample.c.words)).label("word")
    held = select(word).subquery()
    counted = (
        select(held.c.word, func.count().label("hits"))
        .where(held.c.word.in_(select(wanted.c.word)))
        .group_by(held.c.word)
        .subquery()
    )
    return select(
        wanted.c.word,
        func.coalesce(counted.c.hits, 0),
        select(func.count()).select_from(sample).scalar_subquery(),
    ).select_from(wanted.outerjoin(counted, counted.c.word == wanted.c.word))


def count_words(words: Sequence[str]) -> Select[str, int]:
    """(word, prompts of the transaction's tenant that hold it), counted a little beyond rare."""
    texts = cast(literal(list(words), ARRAY(Text)), ARRAY(Text))
    queries = cast(literal([tsquery_of(word) for word in words], ARRAY(Text)), ARRAY(Text))
    wanted = (
        func.unnest(texts, queries)
        .table_valued(column("word", Text), column("query", Text), name="wanted")
        .render_derived()
    )
    counted = (
        select(func.count())
        .select_from(_prompts_with(cast(wanted.c.query, TSQUERY), RARE_UP_TO + 1))
        .scalar_subquery()
    )
    return select(wanted.c.word, counted)


def page_of_few(question: Question, limit: int, after: Position | None) -> Hits:
    """Entries in exact order, over all that the filters leave."""
    return _page(question, _matching(question).cte("candidates"), limit, after, matched=True)


def page_of_many(question: Question, limit: int, after: Position | None) -> Hits:
    """Entries out of the candidates."""
    return _page(question, _nearest(question).cte("candidates"), limit, after)


def page_of_rest(question: Question, limit: int, after: Position | None) -> Hits:
    """Entries in exact order, over all that the filters leave and that were no candidates."""
    near = _nearest(question).cte("near")
    rest = _matching(question).cte("matching")
    others = select(rest.c.id).where(rest.c.id.not_in(select(near.c.id)))
    return _page(question, others.cte("candidates"), limit, after, matched=True)


def image_conditions(
    tenant_id: UUID, filters: Filters, image: Any = Image
) -> list[ColumnElement[bool]]:
    """What an image must be."""
    conditions: list[ColumnElement[bool]] = [image.tenant_id == tenant_id]
    equal: Mapping[Any, object] = {
        image.session_id: filters.session_id,
        image.model: filters.model,
        image.seed: filters.seed,
        image.kind: filters.kind,
        image.width: filters.width,
        image.height: filters.height,
    }
    conditions += [fact == value for fact, value in equal.items() if value is not None]
    if filters.starred is not None:
        conditions.append(image.starred if filters.starred else ~image.starred)
    if filters.created_after is not None:
        conditions.append(image.created_at >= filters.created_after)
    if filters.created_before is not None:
        conditions.append(image.created_at < filters.created_before)
    if filters.metadata:
        jobs = func.darkroom_jobs_with(cast(dict(filters.metadata), JSONB), type_=Uuid)
        conditions.append(image.job_id.in_(select(jobs.column_valued("job"))))
    if filters.without_image is not None:
        conditions.append(image.id != filters.without_image)
    return conditions


def _matching(question: Question) -> Select[UUID]:
    tenant_id, filters = question.tenant_id, question.filters
    if not filters.narrows:
        return select(Prompt.id.label("id")).where(Prompt.tenant_id == tenant_id)
    images = select(Image.prompt_id.label("id")).where(*image_conditions(tenant_id, filters))
    return images.distinct()


def _nearest(question: Question) -> CompoundSelect[UUID]:
    """The nearest by each model's index, and those that the words of the query name."""
    legs: list[Select[Any]] = [
        select(nearest_by_model(question, vector).subquery().c.id) for vector in question.vectors
    ]
    if question.lexical.rare:
        wanted = cast(literal(fusion.word_query(question.lexical.rare), Text), TSQUERY)
        legs.append(select(_prompts_with(wanted, RARE_UP_TO).c.id))
    phrase = fusion.phrase_query(question.phrase)
    legs.append(select(_prompts_with(phrase, CANDIDATES).c.id))
    return union(*legs)


def nearest_by_model(question: Question, vector: QueryVector) -> Select[UUID]:
    """The nearest prompts by one model's index, nearest first."""
    is_of_model, near = PROMPTS.nearest(vector.model, vector.dimensions, vector.text)
    statement = select(Prompt.id.label("id")).where(
        Prompt.tenant_id == question.tenant_id, literal_column(is_of_model)
    )
    if question.filters.narrows:
        statement = statement.where(_has_image(question, Prompt.id))
    return statement.order_by(near).limit(CANDIDATES)


def _has_image(question: Question, prompt_id: Any) -> ColumnElement[bool]:
    conditions = image_conditions(question.tenant_id, question.filters)
    return select(Image.id).where(Image.prompt_id == prompt_id, *conditions).exists()


def _prompts_with(wanted: ColumnElement[Any], most: int) -> Any:
    found = func.darkroom_prompts_with(wanted, cast(most, Integer))
    return found.table_valued(column("id", Uuid), name="found").render_derived()


def _page(
    question: Question,
    candidates: CTE,
    limit: int,
    after: Position | None,
    *,
    matched: bool = False,
) -> Hits:
    """`matched`: the filters that narrow have been asked already."""
    measured = _measured(question, candidates)
    ranked = _ranked(question, measured, limit, after, matched=matched)
    images = (
        select(Image)
        .where(
            Image.prompt_id == ranked.c.id, *image_conditions(question.tenant_id, question.filters)
        )
        .order_by(Image.id.desc())
        .limit(limit)
    )
    if after is not None:
        # The page before may have ended between two pictures of one prompt.
        images = images.where(or_(ranked.c.id != after.prompt_id, Image.id < after.image_id))
    image = aliased(Image, images.lateral("image"))
    return (
        select(image, Prompt.text, ranked.c.id, ranked.c.score, ranked.c.similarity)
        .select_from(ranked)
        .join(Prompt, Prompt.id == ranked.c.id)
        .join(image, true())
        .order_by(ranked.c.score.desc(), ranked.c.id.desc(), image.id.desc())
        .limit(limit)
    )


def _measured(question: Question, candidates: CTE) -> CTE:
    """(id, similarity, words, exact) of each candidate, each computed once."""
    return (
        select(
            Prompt.id.label("id"),
            fusion.similarity(question.vectors).label("similarity"),
            fusion.words_share(question.lexical).label("words"),
            fusion.is_exact(question.phrase, question.lexical).label("exact"),
        )
        .where(Prompt.tenant_id == question.tenant_id, Prompt.id.in_(select(candidates.c.id)))
        .cte("measured")
        .prefix_with("MATERIALIZED")
    )


def _ranked(
    question: Question, measured: CTE, limit: int, after: Position | None, *, matched: bool
) -> Any:
    """The first prompts that can fill a page: each has a picture, save the one begun before."""
    score = fusion.fused(measured.c.similarity, measured.c.words, measured.c.exact).label("score")
    scored = select(measured.c.id, measured.c.similarity, score).subquery("scored")
    statement = select(scored.c.id, scored.c.similarity, scored.c.score)
    if after is not None:
        here = tuple_(scored.c.score, scored.c.id)
        statement = statement.where(here <= tuple_(literal(after.score), after.prompt_id))
    if question.min_score is not None:
        statement = statement.where(scored.c.score >= question.min_score)
    if question.filters.narrows:
        if not matched:
            statement = statement.where(_has_image(question, scored.c.id))
    elif question.filters.without_image is not None:
        statement = statement.where(_has_image(question, scored.c.id))
    return (
        statement.order_by(scored.c.score.desc(), scored.c.id.desc())
        .limit(limit + 1)
        .subquery("ranked")
    )

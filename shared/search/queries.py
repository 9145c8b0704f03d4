"""SQL of search: count what a filter leaves, gather candidates, order them, page through them.

A few rows are ordered exactly; many are first cut down to candidates by an HNSW index and by the
index of words. `EXACT_UP_TO` is the border; both sides end in the same `_page`. Statements of pages
are built once for each shape of a question: their building took as long as their running.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    Uuid,
    any_,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSQUERY
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import CompoundSelect, ScalarSelect, Subquery

from shared.core.database import cached_query, param, with_params
from shared.images.models import Image, Prompt
from shared.search import ranking, terms
from shared.search.embeddings import PROMPTS
from shared.search.query import Phase, Position, Rank, SearchQuery, Shape
from shared.search.ranking import Filters, image_conditions, narrows
from shared.search.terms import (
    GRAMS_UP_TO,
    RARE_UP_TO,
    grams,
    prompts_spelling,
    prompts_with,
    without_grams,
)

EXACT_UP_TO = 20_000
"""Rows that are ordered exactly. An HNSW index that must find its rows behind a filter that keeps
1 in 100 takes longer and loses some (docs/adr/0007)."""

CANDIDATES = 200
"""The nearest prompts that an HNSW search looks at; a page has at most as many entries."""

_SHAPES = 128
"""Statements that are kept, some 100 kB each: those of what people really ask."""

PLANNING = {
    "hnsw.ef_search": str(CANDIDATES),
    # Go on behind a filter until there are enough; the order is put right afterwards.
    "hnsw.iterative_scan": "relaxed_order",
    # Compiling takes longer than any of these statements.
    "jit": "off",
    # The default supposes a disk whose heads must move: for a session with a tenth of all prompts
    # Postgres would read all of them.
    "random_page_cost": "1.1",
    # A plan that does not know the values reads the query's vector again for every row.
    "plan_cache_mode": "force_custom_plan",
}
"""Settings of a transaction that searches."""

Hits = Select[Image, str, UUID, float, float, float]
"""(image, its prompt, the prompt's id, score, similarity, what it is ordered by)."""


def count_rows(tenant_id: UUID, filters: Filters) -> Select[int]:
    """How many images the filters leave, counted up to the border."""
    values = filters.values() | {"tenant": tenant_id, "border": EXACT_UP_TO + 1}
    return with_params(select(_rows(filters.asks)), **values)


def newest(
    tenant_id: UUID, filters: Filters, limit: int, before: UUID | None
) -> Select[Image, str]:
    """(image, its prompt) of what the filters leave, newest first."""
    statement = select(Image, Prompt.text).join(Prompt, Prompt.id == Image.prompt_id)
    statement = statement.where(*image_conditions(filters.asks))
    if before is not None:
        statement = statement.where(Image.id < before)
    statement = statement.order_by(Image.id.desc()).limit(limit)
    return with_params(statement, tenant=tenant_id, **filters.values())


def prepare(
    tenant_id: UUID, filters: Filters, query: str, common: Sequence[str]
) -> Select[int | None, dict[str, int | None]]:
    """(rows, words): how many images the filters leave, and how many prompts hold each word.

    Both are counted up to a border only; None where no filter narrows, and for common words.
    """
    values = filters.values() | {"tenant": tenant_id, "border": EXACT_UP_TO + 1}
    values |= {"query": without_grams(query), "common": list(common)}
    if spelled := grams(query):
        values["grams"] = spelled
    return with_params(_prepare(filters.asks, bool(spelled)), **values)


@cached_query(_SHAPES)
def _prepare(asks: frozenset[str], spelled: bool) -> Select[int | None, dict[str, int | None]]:
    rows = _rows(asks) if narrows(asks) else null()
    common = cast(param("common", ARRAY(Text)), ARRAY(Text))
    words: ColumnElement[Any] = terms.count_words(param("query", Text), common, RARE_UP_TO + 1)
    if spelled:
        wanted = cast(param("grams", ARRAY(Text)), ARRAY(Text))
        counted = terms.count_grams(wanted, GRAMS_UP_TO + 1)
        words = words.op("||", return_type=JSONB())(counted)
    return select(cast(rows, Integer), words)


def _rows(asks: frozenset[str]) -> ScalarSelect[int]:
    conditions = image_conditions(asks, reproductions=True)
    matches = select(literal(1)).where(*conditions).limit(param("border", Integer))
    return select(func.count()).select_from(matches.subquery()).scalar_subquery()


def page(phase: Phase, query: SearchQuery, limit: int, after: Position | None) -> Hits:
    """The entries of a phase that come after a position."""
    values = query.values() | {"limit": limit, "candidates": CANDIDATES}
    if after is not None:
        values |= {f"after_{name}": value for name, value in vars(after).items()}
    return with_params(_BUILDERS[phase](query.shape, after is not None), **values)


def nearest_by_model(query: SearchQuery, number: int = 0) -> Select[UUID]:
    """The nearest prompts to one of the question's vectors, by its model's index, nearest first."""
    statement = _nearest_by_model(query.shape, number)
    return with_params(statement, **query.values(), candidates=CANDIDATES)


@cached_query(_SHAPES)
def _exact_page(shape: Shape, goes_on: bool) -> Hits:
    if not narrows(shape.asks):
        return _page(shape, true(), goes_on)
    # As an array the ids are sorted, and the index is walked along once: twice as fast as a join,
    # which looks each of them up from the root.
    ids = func.array(_matching(shape).scalar_subquery())
    return _page(shape, Prompt.id == any_(ids), goes_on, matched=True)


@cached_query(_SHAPES)
def _ann_page(shape: Shape, goes_on: bool) -> Hits:
    near = _nearest(shape).cte("candidates")
    return _page(shape, Prompt.id.in_(select(near.c.id)), goes_on)


@cached_query(_SHAPES)
def _fallback_page(shape: Shape, goes_on: bool) -> Hits:
    near = _nearest(shape).cte("near")
    among: ColumnElement[bool] = Prompt.id.not_in(select(near.c.id))
    if narrows(shape.asks):
        among = among & Prompt.id.in_(_matching(shape))
    return _page(shape, among, goes_on, matched=True)


_BUILDERS = {Phase.EXACT: _exact_page, Phase.ANN: _ann_page, Phase.FALLBACK: _fallback_page}


def clear_cached_queries() -> None:
    """Rebuild statements, to try other weights than those of `fused`."""
    for builder in _BUILDERS.values():
        builder.clear()


def _matching(shape: Shape) -> Select[UUID]:
    return select(Image.prompt_id).where(*image_conditions(shape.asks))


def _nearest(shape: Shape) -> CompoundSelect[UUID]:
    """The nearest by each model's index, and those that the words of the query name."""
    legs: list[Select[Any]] = [
        select(_nearest_by_model(shape, number).subquery().c.id)
        for number in range(len(shape.spaces))
    ]
    if shape.rare:
        wanted = cast(param("any_rare", Text), TSQUERY)
        legs.append(select(prompts_with(wanted, RARE_UP_TO).c.id))
    most = param("candidates", Integer)
    if shape.rare_grams:
        any_rare = param("rare_grams", ARRAY(Text))
        legs.append(select(prompts_spelling(any_rare, false(), RARE_UP_TO).c.id))
    if shape.spelled:
        every = param("grams", ARRAY(Text))
        legs.append(select(prompts_spelling(every, true(), most).c.id))
    phrase = ranking.phrase_query(param("phrase", Text))
    legs.append(select(prompts_with(phrase, most).c.id))
    return union(*legs)


def _nearest_by_model(shape: Shape, number: int) -> Select[UUID]:
    model, dimensions = shape.spaces[number]
    is_of_model, near = PROMPTS.nearest(model, dimensions, _vector(number))
    statement = select(Prompt.id.label("id")).where(_OWN, literal_column(is_of_model))
    if narrows(shape.asks):
        statement = statement.where(_has_image(shape, Prompt.id))
    return statement.order_by(near).limit(param("candidates", Integer))


def _has_image(shape: Shape, prompt_id: Any) -> ColumnElement[bool]:
    conditions = image_conditions(shape.asks)
    return select(Image.id).where(Image.prompt_id == prompt_id, *conditions).exists()


def _page(
    shape: Shape, among: ColumnElement[bool], goes_on: bool, *, matched: bool = False
) -> Hits:
    """`among` are the prompts; `matched`: the filters that narrow have been asked already."""
    ranked = _ranked(shape, _measured(shape, among), goes_on, matched=matched)
    limit = param("limit", Integer)
    images = (
        select(Image)
        .where(Image.prompt_id == ranked.c.id, *image_conditions(shape.asks))
        .order_by(Image.id.desc())
        .limit(limit)
    )
    if goes_on:
        # The page before may have ended between two images of one prompt.
        images = images.where(
            or_(
                ranked.c.id != param("after_prompt_id", Uuid),
                Image.id < param("after_image_id", Uuid),
            )
        )
    image = aliased(Image, images.lateral("image"))
    return (
        select(image, Prompt.text, ranked.c.id, ranked.c.score, ranked.c.similarity, ranked.c.key)
        .select_from(ranked)
        .join(Prompt, Prompt.id == ranked.c.id)
        .join(image, true())
        .order_by(ranked.c.key.desc(), ranked.c.id.desc(), image.id.desc())
        .limit(limit)
    )


def _measured(shape: Shape, among: ColumnElement[bool]) -> Subquery:
    """(id, similarity, words, exact) of each prompt, each computed once."""
    vectors = {model: _vector(number) for number, (model, _) in enumerate(shape.spaces)}
    words = (
        (param(f"word_{number}", Text), param(f"share_{number}", Double))
        for number in range(shape.words)
    )
    parts = (
        (param(f"gram_{number}", Text), param(f"gram_share_{number}", Double))
        for number in range(shape.grams)
    )
    rare = param("all_rare", Text) if shape.rare else None
    rare_grams = None
    if shape.rare_grams:
        rare_grams = cast(param("rare_patterns", ARRAY(Text)), ARRAY(Text))
    return (
        select(
            Prompt.id.label("id"),
            ranking.similarity(vectors).label("similarity"),
            ranking.words_share(words, parts).label("words"),
            ranking.is_exact(param("phrase", Text), rare, rare_grams, spelled=shape.spelled).label(
                "exact"
            ),
        )
        .where(_OWN, among)
        # A fence, which costs less than a materialized CTE: without it Postgres would compute what
        # is named twice outside a second time.
        .offset(literal_column("0"))
        .subquery("measured")
    )


def _ranked(shape: Shape, measured: Subquery, goes_on: bool, *, matched: bool) -> Any:
    """The first prompts that can fill a page: each has an image, save the one begun before."""
    score = ranking.fused(measured.c.similarity, measured.c.words, measured.c.exact).label("score")
    scored = select(measured.c.id, measured.c.similarity, score).subquery("scored")
    key: ColumnElement[Any] = scored.c.score
    if shape.rank is Rank.SIMILARITY:
        key = ranking.rounded(scored.c.similarity)
    statement = select(scored.c.id, scored.c.similarity, scored.c.score, key.label("key"))
    if goes_on:
        here = tuple_(key, scored.c.id)
        there = tuple_(param("after_score", Double), param("after_prompt_id", Uuid))
        statement = statement.where(here <= there)
    if shape.has_min_score:
        statement = statement.where(scored.c.score >= param("min_score", Double))
    if narrows(shape.asks):
        if not matched:
            statement = statement.where(_has_image(shape, scored.c.id))
    elif "without_image" in shape.asks:
        statement = statement.where(_has_image(shape, scored.c.id))
    return (
        statement.order_by(key.desc(), scored.c.id.desc())
        .limit(param("limit", Integer) + 1)
        .subquery("ranked")
    )


def _vector(number: int) -> ColumnElement[str]:
    return param(f"vector_{number}", Text)


_OWN = Prompt.tenant_id == param("tenant", Uuid)

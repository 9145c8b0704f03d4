"""After a change of the embedding model: prompts are embedded anew, and found all the while."""

import asyncio
from collections.abc import Iterator, Sequence
from uuid import UUID

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.core.principal import Principal
from api.search import cursor
from api.search import service as search_service
from api.search.service import SearchRequest
from deploy.local.servers import EmbeddedServers
from shared.core import tenants
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings
from shared.images import models as image_models
from shared.search import embeddings as search_embeddings
from shared.search.embeddings import PROMPTS
from shared.search.ranking import Filters
from tests.conftest import MIGRATED
from tests.integration.search.gallery import Embeddings, any_vector, insert_image
from worker.search import reembed
from worker.search.reembed import PromptIndexer

FORMER = "it's-a:former/model"
COUNT = 10


class Models:
    """Stands for the models of a CPU worker: 384 numbers for any text, without meaning."""

    def get(self) -> "Models":
        """The model in use."""
        return self

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector each."""
        return [any_vector(len(text)) for text in texts]


@pytest.fixture
def other_settings(servers: EmbeddedServers, settings: Settings) -> Iterator[Settings]:
    """A database of its own, whose prompts are all of a former model with 8 numbers."""
    url = servers.postgres.create_database("reembedding", template=MIGRATED)
    yield Settings(
        **{**settings.model_dump(), "database_url": url, "redis_url": settings.redis_url}
    )
    servers.postgres.drop_database("reembedding")


def counts(database: sessionmaker[Session]) -> dict[str, int]:
    """Prompts by model."""
    with database() as session:
        models = session.scalars(select(image_models.Prompt.embedding_model)).all()
    return {model: models.count(model) for model in set(models)}


def indexes(database: sessionmaker[Session]) -> set[str]:
    """The valid indexes of embedding models."""
    with database() as session:
        return {name for name, valid in session.execute(PROMPTS.list()) if valid}


def test_it_goes_on_where_it_was_stopped(
    other_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reembed, "_AT_ONCE", 4)
    engine = open_engine(other_settings)
    database = session_factory(engine)
    used = other_settings.embedding_model

    def restarter(settings: Settings = other_settings) -> PromptIndexer:
        return PromptIndexer(settings, engine, database, Models(), lambda: True)  # type: ignore[arg-type]

    with database.begin() as session:
        tenant = session.scalars(tenants.ensure_tenant("t")).one()
        for number in range(COUNT):
            vector = any_vector(number, 8)
            insert_image(session, tenant, f"prompt {number}", vector, model=FORMER)
    former = {"embedding_model": FORMER, "embedding_dimensions": 8}
    restarter(other_settings.model_copy(update=former)).tend_indexes()
    assert indexes(database) == {PROMPTS.name(FORMER, 8)}

    first = restarter()
    first.tend_indexes()
    assert indexes(database) == {PROMPTS.name(FORMER, 8), PROMPTS.name(used, 384)}
    assert first.embed_some() == 4
    assert counts(database) == {FORMER: 6, used: 4}
    with database() as session:
        known = {tuple(row) for row in session.execute(search_embeddings.list_models())}
    assert known == {(FORMER, 8), (used, 384)}

    second = restarter()
    assert [second.embed_some() for _ in range(3)] == [4, 2, 0]
    assert counts(database) == {used: COUNT}
    second.tend_indexes()
    assert indexes(database) == {PROMPTS.name(used, 384)}
    engine.dispose()


def test_every_page_goes_by_the_models_that_the_first_one_had(
    other_settings: Settings, embeddings: Embeddings
) -> None:
    """The worker cannot load the former model any more; half of the prompts are of it."""
    engine = open_engine(other_settings)
    with session_factory(engine).begin() as session:
        tenant = session.scalars(tenants.ensure_tenant("t")).one()
        for number in range(COUNT):
            model, length = (FORMER, 8) if number % 2 else (embeddings.model, 384)
            vector = any_vector(number, length)
            insert_image(session, tenant, f"prompt {number}", vector, model=model)
    engine.dispose()
    embeddings.embed(["a prompt"])  # and cached, whatever else the worker has to do
    principal = Principal(tenant, "t", frozenset({"search"}))

    async def look() -> None:
        async with open_resources(other_settings) as resources:
            seen: list[UUID] = []
            after = None
            while True:
                asked = SearchRequest("a prompt", Filters(), 3, after)
                found, after = await search_service.find(resources, principal, asked)
                seen += [entry.image.id for entry in found]
                if after is None:
                    break
                assert cursor.models_of(after) == {cursor.model_digest(embeddings.model)}
            assert len(seen) == len(set(seen)) == COUNT

    asyncio.run(look())

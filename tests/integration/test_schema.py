"""The migrated schema is the one in code; going down and up again leaves no trace."""

import math

from sqlalchemy import select

from deploy.local.servers import EmbeddedServers
from migrations.commands import check, downgrade, upgrade
from shared.core import tenants
from shared.core.database import open_engine, session_factory
from shared.core.settings import Settings
from shared.images.models import Prompt
from tests.integration.search.gallery import any_vector, insert_image


def test_the_migrations_make_exactly_the_tables_in_code(settings: Settings) -> None:
    assert check(settings.database_url.get_secret_value()) is None  # raises where they differ


def test_down_to_nothing_and_up_again(servers: EmbeddedServers) -> None:
    url = servers.postgres.create_database("down_and_up")
    try:
        upgrade(url)
        downgrade("base", url)
        upgrade(url)
        assert check(url) is None
    finally:
        servers.postgres.drop_database("down_and_up")


def test_prompts_that_the_model_knows_nothing_of_lose_their_vectors(
    servers: EmbeddedServers, settings: Settings
) -> None:
    unknown = {"一只红色的猫", "แมวสีแดง 2", "🎈🎈"}
    known = {"a red cat", "红色 cat", "красный кот", "42"}
    url = servers.postgres.create_database("unknown_text")
    upgrade(url)
    engine = open_engine(
        Settings(**{**settings.model_dump(), "database_url": url, "redis_url": settings.redis_url})
    )
    try:
        with session_factory(engine).begin() as session:
            tenant = session.scalars(tenants.ensure_tenant("t")).one()
            for prompt in unknown | known:
                insert_image(session, tenant, prompt, any_vector(1))
        downgrade("0016", url)
        upgrade(url)
        with session_factory(engine)() as session:
            lengths = {
                prompt.text: math.hypot(*prompt.embedding)
                for prompt in session.scalars(select(Prompt))
            }
        assert {text for text, length in lengths.items() if length == 0} == unknown
        assert len(lengths) == len(unknown | known)
    finally:
        engine.dispose()
        servers.postgres.drop_database("unknown_text")

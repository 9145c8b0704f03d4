"""The migrated schema is the one in code; going down and up again leaves no trace."""

import math
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from deploy.local.servers import EmbeddedServers
from migrations.commands import check, downgrade, upgrade
from shared.core import tenants
from shared.core.database import open_engine, session_factory
from shared.core.ids import decode_id
from shared.core.settings import Settings, SettingsError
from shared.images.models import Prompt
from tests import earlier_version
from tests.conftest import MIGRATED
from tests.integration.search.gallery import any_vector, insert_image
from tests.processes import PROJECT, wait_until

SCHEMA = {
    "columns": "SELECT table_name, column_name, udt_name, is_nullable, column_default,"
    " collation_name, generation_expression FROM information_schema.columns"
    " WHERE table_schema = 'public'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
    " FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
    # Those of embedding models follow from what is in the tables.
    "indexes": "SELECT indexname, indexdef FROM pg_indexes"
    " WHERE schemaname = 'public' AND indexname !~ '_hnsw_'",
    "functions": "SELECT oid::regprocedure::text, regexp_replace(trim(prosrc), '\\s+', ' ', 'g'),"
    " prosecdef, provolatile, prorows, proconfig, proacl::text FROM pg_proc"
    " WHERE pronamespace = 'public'::regnamespace AND starts_with(proname, 'darkroom')",
    "policies": "SELECT tablename, policyname, roles::text, qual, with_check FROM pg_policies",
    "rights": "SELECT relname, relrowsecurity, relacl::text FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
}
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
KEPT = (
    "SELECT id, tenant_id, prompt, seeds, state, attempt, webhook, init_image, metadata FROM jobs",
    "SELECT job_id, number, worker, outcome, error_code FROM job_attempts",
    "SELECT id, job_id, prompt_id, s3_key, sha256, starred, receipt FROM images",
    "SELECT id, state, paused, summary FROM batches",
    "SELECT id, event_id, state, attempts, due_at FROM webhook_deliveries",
    "SELECT id, secret FROM webhook_secrets",
    "SELECT id, text, embedding::text FROM prompts",
    "SELECT image_id, embedding::text FROM image_vectors",
    "SELECT id, s3_key FROM uploads",
    "SELECT id, secret_hash, scopes, quotas, revoked_at FROM api_keys",
)
"""What an upgrade must not touch."""


@pytest.fixture
def earlier(servers: EmbeddedServers) -> Iterator[str]:
    """The URL of a database of commit 1646d20."""
    url = servers.postgres.create_database("earlier")
    earlier_version.restore_database(url)
    yield url
    servers.postgres.drop_database("earlier")


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return sorted(connection.execute(query).fetchall(), key=repr)


def test_the_migrations_make_exactly_the_tables_in_code(settings: Settings) -> None:
    check(settings.database_url.get_secret_value())  # raises where they differ


def test_down_to_nothing_and_up_again(servers: EmbeddedServers) -> None:
    url = servers.postgres.create_database("down_and_up")
    try:
        upgrade(url)
        downgrade("base", url)
        upgrade(url)
        check(url)
    finally:
        servers.postgres.drop_database("down_and_up")


@pytest.mark.parametrize(("part", "newer"), [("POSTGRES", 99), ("PGVECTOR", (99, 0))])
def test_a_server_that_is_too_old_is_refused_before_anything_is_changed(
    servers: EmbeddedServers, monkeypatch: pytest.MonkeyPatch, part: str, newer: object
) -> None:
    url = servers.postgres.create_database("too_old")
    monkeypatch.setattr(f"migrations.servers.{part}", newer)
    try:
        with pytest.raises(SettingsError, match=r"needs \w+ 99\S* or newer; this is \d"):
            upgrade(url)
        assert rows(url, TABLES) == []
    finally:
        servers.postgres.drop_database("too_old")


def test_the_fixture_has_jobs_in_every_state(earlier: str) -> None:
    states = {state for (state,) in rows(earlier, "SELECT DISTINCT state FROM jobs")}
    assert states == {"queued", "running", "succeeded", "failed", "canceled", "expired"}
    assert rows(earlier, "SELECT * FROM alembic_version") == [(earlier_version.REVISION,)]


def test_an_upgrade_of_an_earlier_version_loses_nothing(earlier: str) -> None:
    before = [rows(earlier, query) for query in KEPT]
    sizes = table_sizes(earlier)
    assert all(before)
    upgrade(earlier)
    assert [rows(earlier, query) for query in KEPT] == before
    after = table_sizes(earlier)
    assert {table: after.get(table, 0) for table in sizes} == sizes


def test_jobs_accepted_while_it_upgrades_are_kept(earlier: str) -> None:
    with earlier_version.submitting(earlier) as accepted:
        wait_until(lambda: len(accepted) >= 3, what="jobs before the upgrade")
        before = len(accepted)
        upgrade(earlier)
    assert len(accepted) > before, "none came during the upgrade"
    queued = rows(earlier, "SELECT id, queue_class FROM jobs WHERE state = 'queued'")
    assert {(decode_id("job", job), "interactive") for job in accepted} <= set(queued)


def table_sizes(url: str) -> dict[str, int]:
    tables = [table for (table,) in rows(url, TABLES)]
    return {table: rows(url, f"SELECT count(*) FROM {table}")[0][0] for table in tables}  # noqa: S608


def test_an_upgraded_schema_is_a_fresh_one(earlier: str, settings: Settings) -> None:
    upgrade(earlier)
    check(earlier)
    fresh = settings.database_url.get_secret_value().replace("+psycopg", "", 1)
    for part, query in SCHEMA.items():
        assert rows(earlier, query) == rows(fresh, query), part


def test_prompts_that_the_model_knows_nothing_of_lose_their_vectors(
    servers: EmbeddedServers, settings: Settings
) -> None:
    unknown = {"一只红色的猫", "แมวสีแดง 2", "🎈🎈"}
    known = {"a red cat", "红色 cat", "красный кот", "42"}
    url = servers.postgres.create_database("unknown_text", template=MIGRATED)
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


def test_tables_with_traffic_get_indexes_concurrently() -> None:
    """Jobs and images may have millions of rows; to read them all under a lock outlasts a lease."""
    for script in sorted((PROJECT / "migrations" / "versions").glob("*.py")):
        if script.name == "0010_initial.py":
            continue  # its tables are new
        text = script.read_text("utf-8")
        for index in re.findall(
            r"CREATE (?:UNIQUE )?INDEX(?! CONCURRENTLY).*?(?=\n\n|\Z)", text, re.S
        ):
            assert not re.search(r"ON (?:jobs|images|prompts)\b", index), script.name
        for call in re.findall(r"create_index\(((?:[^()]|\([^()]*\))*)\)", text):
            large = re.search(r'"(?:jobs|images|prompts)"', call)
            assert not large or "postgresql_concurrently=True" in call, script.name

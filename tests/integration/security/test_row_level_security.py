"""The second wall: a statement that forgets its tenant still sees and changes that tenant alone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.context import Resources
from api.core.principal import Principal
from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from migrations.commands import upgrade
from migrations.metadata import target_metadata
from migrations.row_level_security import RoleMissing
from shared.core.ids import new_id
from shared.core.keys import parse_key
from shared.core.settings import Settings
from shared.core.tenants import ROLE

T = TypeVar("T")
TABLES = sorted(target_metadata.tables)


@pytest.fixture(scope="module")
def principals(settings: Settings, database: sessionmaker[Session]) -> tuple[Principal, Principal]:
    """Two tenants, each with a session of its own."""
    found = []
    for name in ("wall one", "wall two"):
        url = settings.database_url.get_secret_value()
        key = parse_key(create_key(url, tenant=name, name=name, scopes=["jobs"]))
        assert key is not None
        with database.begin() as session:
            row = session.execute(
                text("SELECT tenant_id FROM api_keys WHERE id = :id"), {"id": key.id}
            ).one()
            session.execute(
                text("INSERT INTO sessions VALUES (:tenant, 'mine') ON CONFLICT DO NOTHING"),
                {"tenant": row.tenant_id},
            )
        found.append(Principal(row.tenant_id, key.id, frozenset({"jobs"})))
    return found[0], found[1]


def run(settings: Settings, work: Callable[[Resources], Awaitable[T]]) -> T:
    """Do something with the resources of an API process."""

    async def main() -> T:
        async with open_resources(settings) as resources:
            return await work(resources)

    return asyncio.run(main())


async def tenants_in(resources: Resources, who: Principal, table: str) -> set[UUID]:
    """The tenants whose rows a statement without any filter sees."""
    column = "id" if table == "tenants" else "tenant_id"
    async with resources.tenant_transaction(who) as session:
        rows = await session.execute(text(f"SELECT DISTINCT {column} FROM {table}"))  # noqa: S608
        return set(rows.scalars())


def test_every_table_stands_behind_it(engine: Engine) -> None:
    with engine.connect() as connection:
        walled = connection.execute(
            text(
                "SELECT c.relname FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid"
                " WHERE c.relrowsecurity AND p.polcmd = '*' AND p.polwithcheck IS NOT NULL"
                " AND p.polroles = ARRAY[(SELECT oid FROM pg_roles WHERE rolname = :role)]"
            ),
            {"role": ROLE},
        )
        assert sorted(walled.scalars()) == TABLES


def test_the_role_can_do_nothing_else(engine: Engine) -> None:
    with engine.connect() as connection:
        role = connection.execute(
            text("SELECT * FROM pg_roles WHERE rolname = :role"), {"role": ROLE}
        ).one()
    rights = (role.rolsuper, role.rolbypassrls, role.rolcanlogin, role.rolcreaterole)
    assert not any(rights)


def test_a_select_without_a_filter_sees_one_tenant(
    settings: Settings, principals: tuple[Principal, Principal]
) -> None:
    async def look(resources: Resources) -> None:
        for who in principals:
            for table in ("tenants", "api_keys", "sessions"):
                assert await tenants_in(resources, who, table) == {who.tenant_id}

    run(settings, look)


@pytest.mark.parametrize(
    "statement", ["UPDATE sessions SET created_at = now()", "DELETE FROM sessions"]
)
def test_a_write_without_a_filter_changes_one_tenant(
    settings: Settings, principals: tuple[Principal, Principal], statement: str
) -> None:
    async def write(resources: Resources) -> UUID:
        async with resources.tenant_transaction(principals[0]) as session:
            changed = await session.execute(text(f"{statement} RETURNING tenant_id"))
            (tenant,) = changed.scalars()
            await session.rollback()
        return tenant

    assert run(settings, write) == principals[0].tenant_id


def test_a_row_cannot_be_given_to_another_tenant(
    settings: Settings, principals: tuple[Principal, Principal]
) -> None:
    async def smuggle(resources: Resources) -> None:
        async with resources.tenant_transaction(principals[0]) as session:
            await session.execute(
                text("INSERT INTO sessions VALUES (:tenant, 'smuggled')"),
                {"tenant": principals[1].tenant_id},
            )

    with pytest.raises(ProgrammingError, match="row-level security"):
        run(settings, smuggle)


def test_an_unknown_tenant_sees_nothing(
    settings: Settings, principals: tuple[Principal, Principal]
) -> None:
    nobody = Principal(new_id(), "nobody", frozenset())

    async def look(resources: Resources) -> None:
        for table in ("tenants", "api_keys", "sessions", "jobs"):
            assert await tenants_in(resources, nobody, table) == set()

    run(settings, look)


def test_it_ends_with_its_transaction(
    settings: Settings, principals: tuple[Principal, Principal]
) -> None:
    """Connections are pooled: the next transaction on it must begin as the owner."""
    alone = settings.model_copy(update={"database_pool_size": 1})

    async def look(resources: Resources) -> None:
        await tenants_in(resources, principals[0], "sessions")
        async with resources.transaction() as session:
            role, tenants = (
                await session.execute(
                    text("SELECT current_user, (SELECT count(*) FROM tenants) AS tenants")
                )
            ).one()
        assert role != ROLE
        assert tenants >= 2
        assert await tenants_in(resources, principals[1], "sessions") == {principals[1].tenant_id}

    run(alone, look)


def test_who_leaves_on_the_way_in_takes_the_connection_along(
    settings: Settings, principals: tuple[Principal, Principal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes away cancels its stream wherever it is, also between what was asked of
    Postgres and the answer; the next to use the connection must not meet that answer."""
    alone = settings.model_copy(update={"database_pool_size": 1})
    leaver, stayer = principals

    async def backend(resources: Resources) -> int:
        async with resources.tenant_transaction(stayer) as session:
            return int((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    async def leave(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    async def look(resources: Resources) -> None:
        before = await backend(resources)
        assert await backend(resources) == before
        with monkeypatch.context() as patched:
            patched.setattr(psycopg.AsyncConnection, "execute", leave)
            with pytest.raises(asyncio.CancelledError):
                await tenants_in(resources, leaver, "sessions")
        assert await backend(resources) != before

    run(alone, look)


def test_lost_connections_cost_no_request(
    settings: Settings, engine: Engine, principals: tuple[Principal, Principal]
) -> None:
    async def look(resources: Resources) -> None:
        async def backend() -> int:
            async with resources.tenant_transaction(principals[0]) as session:
                return int((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())

        pids = await asyncio.gather(*(backend() for _ in range(3)))
        with engine.connect() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid, 5000) FROM unnest(:pids) pid"),
                {"pids": sorted(set(pids))},
            )
        assert await backend() not in pids

    run(settings, look)


def test_without_the_role_a_migration_says_what_is_missing(servers: EmbeddedServers) -> None:
    name = "no_wall"
    url = servers.postgres.create_database(name)
    with servers.postgres._connect(name) as connection:
        connection.execute("CREATE ROLE outsider LOGIN PASSWORD 'outsiders-password'")
        connection.execute(f"ALTER DATABASE {name} OWNER TO outsider")
    try:
        password = servers.home.secrets.postgres
        theirs = url.replace(f"darkroom:{password}", "outsider:outsiders-password")
        with pytest.raises(RoleMissing, match=f'GRANT {ROLE} TO "outsider"'):
            upgrade(theirs)
        with servers.postgres._connect(name) as connection:
            connection.execute(f'GRANT {ROLE} TO "outsider"')
        upgrade(theirs)
    finally:
        servers.postgres.drop_database(name)
        with servers.postgres._connect("postgres") as connection:
            connection.execute("DROP ROLE outsider")

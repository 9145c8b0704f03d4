"""The second wall: inside a tenant's transaction Postgres itself shows that tenant's rows alone.

The first wall is that every statement takes the tenant. Should one forget it, this one holds: the
transaction runs as the role `darkroom_api`, for which every table of tenants has a row-level
policy (`migrations/walls.py`) that compares the row's tenant with the setting `darkroom.tenant`.
Both end with the transaction. Workers, migrations and the operator's commands work for all tenants
and as the tables' owner, to whom the policies do not apply.
"""

from collections.abc import Mapping
from typing import cast
from uuid import UUID

import psycopg
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

ROLE = "darkroom_api"
TENANT = "darkroom.tenant"
NOTHING_ELSE: Mapping[str, str] = {}

_ENTER = f"SELECT set_config('{TENANT}', %s, true), set_config('role', '{ROLE}', true)"
_SET = ", set_config(%s, %s, true)"


async def enter(
    session: AsyncSession, tenant_id: UUID, settings: Mapping[str, str] = NOTHING_ELSE
) -> None:
    """Until the end of the transaction, be the API's role, see this tenant alone, and have these
    settings of Postgres.

    Called first in a transaction it costs no time on the way: in psycopg's pipeline mode it goes
    out together with the BEGIN.
    """
    connection = await session.connection()
    held = await connection.get_raw_connection()
    driver = cast("psycopg.AsyncConnection", held.driver_connection)
    try:
        async with driver.pipeline():
            values = [text for setting in settings.items() for text in setting]
            await driver.execute(_ENTER + len(settings) * _SET, (str(tenant_id), *values))
    except psycopg.Error:
        # Ask once more through SQLAlchemy, which knows a lost connection and renews its pool.
        await session.execute(select(1))
        raise
    except BaseException:
        # Cancelled between question and answer, as when a client leaves its stream. Whoever had the
        # connection next would read the answers to our questions as those to their own, perhaps
        # another tenant's; SQLAlchemy sees to that for its own statements, and we for this one.
        await connection.invalidate()  # never waits, so cannot be cancelled itself
        raise


async def leave(session: AsyncSession) -> None:
    """Be the owner again within the transaction: for COPY, which row-level security forbids.

    What follows has no second wall, so every statement and every row must name the tenant.
    """
    await session.execute(select(func.set_config("role", "none", True)))

"""Tenants and API keys: tables, scopes, row-level security, and their queries."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import psycopg
from sqlalchemy import (
    ColumnElement,
    ForeignKey,
    LargeBinary,
    Select,
    Text,
    Update,
    and_,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from shared.core.database import Base, CreatedAt, Id, Instant
from shared.core.keys import GeneratedKey, ParsedKey

RESOURCES = ("jobs", "images", "search", "batches", "webhooks", "loras", "admin")

OPERATOR = "operator"
"""May make keys of any tenant. Not part of `admin`; the local stack's first key has it."""

SCOPES = (*RESOURCES, *(f"{resource}:read" for resource in RESOURCES), OPERATOR)
"""A resource's name allows reading and writing it; `jobs:read` allows reading alone. `admin`
allows everything within its tenant, `admin:read` reading everything."""


def name_of(needed: str) -> str:
    """The scope to ask for: `jobs` for `jobs:write`, `jobs:read` as it is."""
    return needed.removesuffix(":write")


def allows(held: Collection[str], needed: str) -> bool:
    """Whether these scopes cover `resource:read`, `resource:write` or `operator`."""
    if needed == OPERATOR:
        return OPERATOR in held
    resource, _, verb = needed.partition(":")
    enough = {resource, "admin"}
    if verb == "read":
        enough |= {f"{resource}:read", "admin:read"}
    return not enough.isdisjoint(held)


def may_give(held: Collection[str], given: str) -> bool:
    """Whether a key with these scopes may make or revoke one with the scope `given`: what it has,
    and no more.
    """
    needed = given if given == OPERATOR or given.endswith(":read") else f"{given}:write"
    return OPERATOR in held or allows(held, needed)


class Tenant(Base):
    """One team. Every row a client can see belongs to exactly one tenant."""

    __tablename__ = "tenants"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A credential of a tenant. Only the hash of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    """The public part of the key, by which it is looked up."""
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    """SHA-256 of the secret, which has enough entropy to need no slow hash."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[Instant | None]
    expires_at: Mapped[Instant | None]
    revoked_at: Mapped[Instant | None]
    quotas: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """A `shared.core.quotas.Quotas`; null: none."""
    a1111_model: Mapped[str | None] = mapped_column(Text)
    """The model that the key has chosen with `POST /sdapi/v1/options`; null: the first."""

    def is_live(self, now: datetime) -> bool:
        """Neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


# Every statement takes the tenant. Should one omit it, row-level security holds:
# the transaction runs as the role `darkroom_api`, for which every table of tenants has a row-
# level policy (`migrations/row_level_security.py`) that compares the row's tenant with the setting
# `darkroom.tenant`. Both end with the transaction. Workers, migrations and the operator's
# commands work for all tenants and as the tables' owner, to whom the policies do not apply.

ROLE = "darkroom_api"
TENANT = "darkroom.tenant"
NOTHING_ELSE: Mapping[str, str] = {}
_ENTER = f"SELECT set_config('{TENANT}', %s, true), set_config('role', '{ROLE}', true)"
_SET = ", set_config(%s, %s, true)"


async def begin_as_tenant(
    session: AsyncSession, tenant_id: UUID, settings: Mapping[str, str] = NOTHING_ELSE
) -> None:
    """Begin a transaction; until its end, be the API's role, see this tenant alone, and have these
    settings of Postgres. All in one round trip.
    """
    connection = await session.connection()
    held = await connection.get_raw_connection()
    driver = cast("psycopg.AsyncConnection", held.driver_connection)
    try:
        async with driver.pipeline():
            await driver.execute("BEGIN")
            await enable_rls_of(driver, tenant_id, settings)
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


async def enable_rls_of(
    driver: "psycopg.AsyncConnection",
    tenant_id: UUID,
    settings: Mapping[str, str] = NOTHING_ELSE,
) -> None:
    """As `begin_as_tenant`, in a transaction that has begun, on the bare driver: in a pipeline, for
    the statements behind it. A transaction may continue with the next tenant."""
    values = [text for setting in settings.items() for text in setting]
    await driver.execute(_ENTER + len(settings) * _SET, (str(tenant_id), *values), prepare=True)


async def disable_rls(session: AsyncSession) -> None:
    """Be the owner again within the transaction: for COPY, which row-level security forbids.

    What follows bypasses row-level security, so every statement and every row must name the tenant.
    """
    await session.execute(select(func.set_config("role", "none", True)))


# Of one order on every server, whatever its collation.
_KEY_ORDER = ApiKey.id.collate("C")


def _is_live(now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    return and_(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    )


def find_key(key_id: str) -> Select[ApiKey]:
    """The key with this public id, live or not."""
    return select(ApiKey).where(ApiKey.id == key_id)


def get_key(tenant_id: UUID, key_id: str) -> Select[ApiKey]:
    """A tenant's key, live or not."""
    return select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)


def touch_key(key_id: str, every: timedelta) -> Update:
    """Note the use of a key, at most once per `every`: a write per request would be waste."""
    now = func.now()
    return (
        update(ApiKey)
        .where(
            ApiKey.id == key_id,
            or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now - every),
        )
        .values(last_used_at=now)
    )


def ensure_tenant(name: str) -> ReturningInsert[UUID]:
    """Insert the tenant or find the one of that name; returns its id either way."""
    statement = pg_insert(Tenant).values(name=name)
    return statement.on_conflict_do_update(
        index_elements=[Tenant.name], set_={"name": statement.excluded.name}
    ).returning(Tenant.id)


def get_tenant_name(tenant_id: UUID) -> Select[str]:
    """What the operator calls a tenant."""
    return select(Tenant.name).where(Tenant.id == tenant_id)


def list_tenants() -> Select[Tenant, int]:
    """Every tenant with the number of its live keys; for the operator."""
    live = select(func.count()).where(ApiKey.tenant_id == Tenant.id, _is_live(func.now()))
    return select(Tenant, live.scalar_subquery()).order_by(Tenant.name)


def insert_key(
    key: GeneratedKey | ParsedKey,
    tenant_id: UUID,
    name: str,
    scopes: Sequence[str],
    *,
    expires_at: datetime | None,
    quotas: dict[str, Any] | None,
    a1111_model: str | None = None,
) -> ReturningInsert[ApiKey]:
    """A new key; its secret is shown to its owner once and never stored."""
    statement = pg_insert(ApiKey).values(
        id=key.id,
        secret_hash=key.secret_hash,
        tenant_id=tenant_id,
        name=name,
        scopes=list(scopes),
        expires_at=expires_at,
        quotas=quotas,
        a1111_model=a1111_model,
    )
    return statement.returning(ApiKey)


def list_keys(tenant_id: UUID, limit: int, after: str | None = None) -> Select[ApiKey]:
    """A tenant's keys in the order of their ids, starting after the id `after`."""
    statement = select(ApiKey).where(ApiKey.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(_KEY_ORDER.op(">")(after))
    return statement.order_by(_KEY_ORDER).limit(limit)


def list_keys_of_all(tenant: str | None = None) -> Select[ApiKey, str]:
    """(key, tenant's name), newest last; of one tenant if it is named. For the operator."""
    statement = select(ApiKey, Tenant.name).join(Tenant, Tenant.id == ApiKey.tenant_id)
    if tenant is not None:
        statement = statement.where(Tenant.name == tenant)
    return statement.order_by(ApiKey.created_at, ApiKey.id)


def has_live_key(now: datetime) -> Select[bool]:
    """Whether anybody could call the API at all."""
    return select(select(ApiKey.id).where(_is_live(now)).exists())


def find_live(key_ids: Sequence[str], now: datetime) -> Select[str]:
    """Which of these keys can be used."""
    return select(ApiKey.id).where(ApiKey.id.in_(key_ids), _is_live(now))


def revoke_key(tenant_id: UUID, key_id: str) -> ReturningUpdate[ApiKey]:
    """End a tenant's key now; a second time changes nothing. No row: the tenant has no such key."""
    return (
        update(ApiKey)
        .where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey)
    )


def expire_key(key_id: str, when: datetime) -> ReturningUpdate[ApiKey]:
    """Let a key end at `when`, or sooner where it would."""
    return (
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(expires_at=func.least(func.coalesce(ApiKey.expires_at, when), when))
        .returning(ApiKey)
    )


def set_quotas(key_id: str, quotas: dict[str, Any] | None) -> ReturningUpdate[ApiKey]:
    """Replace a key's quotas."""
    return update(ApiKey).where(ApiKey.id == key_id).values(quotas=quotas).returning(ApiKey)


def choose_a1111_model(tenant_id: UUID, key_id: str, model: str) -> Update:
    """The model of a tenant's key for requests to `/sdapi/v1` that name none."""
    return (
        update(ApiKey)
        .where(ApiKey.tenant_id == tenant_id, ApiKey.id == key_id)
        .values(a1111_model=model)
    )


def take_turn(key_id: str) -> Select[None]:
    """Wait for other submissions with this key: two must not both see the last free place.

    The turn ends with the transaction.
    """
    return select(func.pg_advisory_xact_lock(func.hashtextextended(f"quota {key_id}", 0)))

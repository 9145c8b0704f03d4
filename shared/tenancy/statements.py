"""SQL of tenants and API keys."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Update, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from shared.tenancy.models import ApiKey, Tenant

# Of one order on every server, whatever its collation.
_KEY_ORDER = ApiKey.id.collate("C")


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
    live = (
        select(func.count())
        .where(
            ApiKey.tenant_id == Tenant.id,
            ApiKey.revoked_at.is_(None),
            or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()),
        )
        .scalar_subquery()
    )
    return select(Tenant, live).order_by(Tenant.name)


def insert_key(key: dict[str, Any]) -> ReturningInsert[ApiKey]:
    """A new key; its secret is shown to its owner once and never stored."""
    return pg_insert(ApiKey).values(**key).returning(ApiKey)


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
    live = select(ApiKey.id).where(
        ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now)
    )
    return select(live.exists())


def find_live(key_ids: Sequence[str], now: datetime) -> Select[str]:
    """Which of these keys can be used."""
    return select(ApiKey.id).where(
        ApiKey.id.in_(key_ids),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
    )


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


def key_columns(
    *,
    key_id: str,
    secret_hash: bytes,
    tenant_id: UUID,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    quotas: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The columns of a new key."""
    return {
        "id": key_id,
        "secret_hash": secret_hash,
        "tenant_id": tenant_id,
        "name": name,
        "scopes": list(scopes),
        "expires_at": expires_at,
        "quotas": quotas,
    }

"""SQL of tenants and API keys."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Update, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningInsert

from shared.tenancy.models import ApiKey, Tenant


def find_key(key_id: str) -> Select[ApiKey]:
    """The key with this public id, live or not."""
    return select(ApiKey).where(ApiKey.id == key_id)


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


def insert_key(key: dict[str, Any]) -> ReturningInsert[ApiKey]:
    """A new key; its secret is shown to its owner once and never stored."""
    return pg_insert(ApiKey).values(**key).returning(ApiKey)

"""What the operator does to tenants and API keys, straight in the database and for all tenants."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from shared.core import tenants
from shared.core.keys import GeneratedKey, ParsedKey, new_key, parse_key
from shared.core.quotas import Quotas
from shared.core.settings import with_driver
from shared.core.tenants import OPERATOR, RESOURCES, ApiKey
from shared.jobs.queries import client_requests
from shared.jobs.queries import quotas as quota_queries

EVERY_SCOPE = (*RESOURCES, OPERATOR)
"""What the local stack's key has."""
LOCAL_TENANT = "local"


class NoSuchKey(Exception):
    """There is no key with this id, or none that can still be changed."""


def register_key(
    database_url: str,
    key: str,
    *,
    tenant: str = LOCAL_TENANT,
    name: str = "local stack",
    scopes: Sequence[str] = EVERY_SCOPE,
) -> None:
    """Register a key that was made elsewhere; idempotent.

    Raises:
        ValueError: the text is not a well-formed key.
    """
    parsed = parse_key(key)
    if parsed is None:
        raise ValueError("not a well-formed API key")
    with database_session(database_url) as session:
        if session.scalars(tenants.find_key(parsed.id)).one_or_none() is None:
            _insert(session, parsed, tenant, name, scopes)


def create_key(
    database_url: str,
    *,
    tenant: str,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    quotas: Quotas | None = None,
) -> str:
    """A new key of a tenant, made on first use; the key is shown once and never stored."""
    key = new_key()
    with database_session(database_url) as session:
        _insert(session, key, tenant, name, scopes, expires_at=expires_at, quotas=quotas)
    return key.key


def rotate_key(database_url: str, key_id: str, grace: timedelta) -> str:
    """A new key with all the rights of an old one, and its end. The old one ends after `grace`, or
    when it would. What counts for quotas goes over to the new one.

    Raises:
        NoSuchKey: there is no such key, or it has ended.
    """
    key = new_key()
    with database_session(database_url) as session:
        old = _find(session, key_id)
        if not old.is_live(datetime.now(UTC)):
            raise NoSuchKey(f"The key {key_id} has been revoked or has expired; create a new one.")
        insertion = tenants.insert_key(
            key,
            *(old.tenant_id, old.name, old.scopes),
            expires_at=old.expires_at,
            quotas=old.quotas,
            a1111_model=old.a1111_model,
        )
        session.execute(insertion)
        session.execute(tenants.expire_key(key_id, datetime.now(UTC) + grace))
        for handover in (
            *quota_queries.hand_over(key_id, key.id),
            client_requests.hand_over(key_id, key.id),
        ):
            session.execute(handover)
    return key.key


def revoke_key(database_url: str, key_id: str) -> None:
    """End a key now. API processes notice within 5 s.

    Raises:
        NoSuchKey: there is no such key.
    """
    with database_session(database_url) as session:
        session.execute(tenants.revoke_key(_find(session, key_id).tenant_id, key_id))


def set_quotas(database_url: str, key_id: str, quotas: Quotas) -> None:
    """Replace a key's quotas.

    Raises:
        NoSuchKey: there is no such key.
    """
    with database_session(database_url) as session:
        _find(session, key_id)
        session.execute(tenants.set_quotas(key_id, quotas.stored()))


def list_keys(database_url: str, tenant: str | None = None) -> list[dict[str, Any]]:
    """Every key without its secret, of one tenant if it is named."""
    with database_session(database_url) as session:
        keys = session.execute(tenants.list_keys_of_all(tenant)).all()
        return [_describe(key, name) for key, name in keys]


def list_tenants(database_url: str) -> list[dict[str, Any]]:
    """Every tenant and how many live keys it has."""
    with database_session(database_url) as session:
        return [
            {"name": tenant.name, "live_keys": live, "created_at": _time(tenant.created_at)}
            for tenant, live in session.execute(tenants.list_tenants()).all()
        ]


def create_tenant(database_url: str, name: str) -> None:
    """Make a tenant; one that exists stays as it is."""
    with database_session(database_url) as session:
        session.execute(tenants.ensure_tenant(name))


def _insert(
    session: Session,
    key: ParsedKey | GeneratedKey,
    tenant: str,
    name: str,
    scopes: Sequence[str],
    *,
    expires_at: datetime | None = None,
    quotas: Quotas | None = None,
) -> None:
    tenant_id = session.scalars(tenants.ensure_tenant(tenant)).one()
    limits = quotas.stored() if quotas else None
    insertion = tenants.insert_key(
        key, tenant_id, name, scopes, expires_at=expires_at, quotas=limits
    )
    session.execute(insertion)


def _find(session: Session, key_id: str) -> ApiKey:
    key = session.scalars(tenants.find_key(key_id)).one_or_none()
    if key is None:
        raise NoSuchKey(f"There is no key {key_id}; the id is its second part, drk_<id>_….")
    return key


def _describe(key: ApiKey, tenant: str) -> dict[str, Any]:
    live = "live" if key.is_live(datetime.now(UTC)) else "expired"
    return {
        "id": key.id,
        "tenant": tenant,
        "name": key.name,
        "state": "revoked" if key.revoked_at else live,
        "scopes": key.scopes,
        "quotas": key.quotas,
        "created_at": _time(key.created_at),
        "last_used_at": _time(key.last_used_at),
        "expires_at": _time(key.expires_at),
    }


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None


@contextmanager
def database_session(database_url: str, **options: Any) -> Iterator[Session]:
    """A transaction as the tables' owner, for all tenants; `options` are the engine's."""
    engine = create_engine(with_driver(database_url), **options)
    try:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session
    finally:
        engine.dispose()

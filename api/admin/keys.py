"""The rules of API keys: who may make which, and for whom."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.admin.schemas import Key, KeyRequest, NewKey, is_future
from api.context import Resources
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, decode_cursor, encode_cursor
from shared.core import tenants
from shared.core.keys import ID_LENGTH, new_key
from shared.core.quotas import Quotas
from shared.core.tenants import OPERATOR, may_give


class NoLiveKey(Exception):
    """Nobody could use the API; make a first key with `darkroom-admin keys create`."""


async def require_live_key(resources: Resources) -> None:
    """Refuse to start outside the local stack while no key can be used.

    A service that is up and answers everybody 401 is one that was set up by halves. While Postgres
    is away it starts all the same: that is an outage, not a mistake.

    Raises:
        NoLiveKey: there is none.
    """
    if resources.settings.environment == "local":
        return
    try:
        async with resources.transaction() as session:
            found = (await session.scalars(tenants.has_live_key(datetime.now(UTC)))).one()
    except Problem:
        return
    if not found:
        raise NoLiveKey(NoLiveKey.__doc__)


async def create(resources: Resources, principal: Principal, asked: KeyRequest) -> NewKey:
    """Make a key of the caller's tenant, or of any for an operator.

    A key that is given no end ends with the caller's.

    Raises:
        Problem: 403 for a scope that the caller does not have, for another tenant without
            `operator`, and for a caller with quotas, who could make its way around them; 422 for
            an end that has passed, or comes after the caller's.
    """
    if not is_future(asked.expires_at, datetime.now(UTC)):
        raise Problem.invalid("/expires_at", "in_the_past", "The key would have expired already.")
    expires_at = asked.expires_at or principal.expires_at
    if _outlives(expires_at, principal):
        raise Problem.invalid(
            "/expires_at",
            "outlives_maker",
            "It may not last longer than the key that you send.",
        )
    if principal.quotas.stored() and not principal.may(OPERATOR):
        raise Problem("insufficient_scope", "A key with quotas may not make keys.")
    refused = [scope for scope in asked.scopes if not may_give(principal.scopes, scope)]
    if refused:
        raise Problem(
            "insufficient_scope", f"You cannot give what you do not have: {', '.join(refused)}."
        )
    async with resources.tenant_transaction(principal) as session:
        own = await _tenant_name(session, principal)
        if asked.tenant in (None, own):
            made = await _insert(session, asked, expires_at, principal.tenant_id, own)
    if asked.tenant in (None, own):
        resources.keys.forget(made.id)
        return made
    if not principal.may(OPERATOR) or asked.tenant is None:
        raise Problem("insufficient_scope", "Keys of another tenant need the scope operator.")
    async with resources.transaction() as session:
        tenant_id = (await session.scalars(tenants.ensure_tenant(asked.tenant))).one()
        made = await _insert(session, asked, expires_at, tenant_id, asked.tenant)
    resources.keys.forget(made.id)
    return made


async def list_page(
    resources: Resources, principal: Principal, limit: int, after: str | None
) -> Page[Key]:
    """One page of the tenant's keys, revoked and expired ones too, in the order of their ids."""
    scope = ("keys", principal.tenant_id)
    position = _key_id(decode_cursor(after, *scope)) if after is not None else None
    async with resources.tenant_transaction(principal) as session:
        tenant = await _tenant_name(session, principal)
        asked = tenants.list_keys(principal.tenant_id, limit + 1, position)
        found = (await session.scalars(asked)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=[_present(row, tenant) for row in page],
        has_more=has_more,
        next_cursor=encode_cursor(_position(page[-1].id), *scope) if has_more else None,
    )


async def revoke(resources: Resources, principal: Principal, key_id: str) -> None:
    """End a key of the tenant: at once in this process, within 5 s in others.

    Raises:
        Problem: 404 for a key that the tenant does not have; 403 for one that may do more than the
            caller's.
    """
    if not (len(key_id) == ID_LENGTH and key_id.isascii() and key_id.isalnum()):
        raise not_found("key")
    async with resources.tenant_transaction(principal) as session:
        asked = tenants.get_key(principal.tenant_id, key_id)
        key = (await session.scalars(asked)).one_or_none()
        if key is None:
            raise not_found("key")
        if not _may_revoke(principal, key):
            raise Problem("insufficient_scope", "The key may do more than the one that you send.")
        await session.execute(tenants.revoke_key(principal.tenant_id, key_id))
    resources.keys.forget(key_id)


async def _tenant_name(session: AsyncSession, principal: Principal) -> str:
    return (await session.scalars(tenants.get_tenant_name(principal.tenant_id))).one()


def _outlives(expires_at: datetime | None, principal: Principal) -> bool:
    """Whether a key with this end is good for longer than the caller's."""
    if principal.expires_at is None:
        return False
    return expires_at is None or expires_at > principal.expires_at


def _may_revoke(principal: Principal, key: tenants.ApiKey) -> bool:
    """Its own key, and any that it could have made: so a key with quotas revokes itself alone."""
    if key.id == principal.key_id or principal.may(OPERATOR):
        return True
    return (
        not principal.quotas.stored()
        and all(may_give(principal.scopes, scope) for scope in key.scopes)
        and not _outlives(key.expires_at, principal)
    )


async def _insert(
    session: AsyncSession,
    asked: KeyRequest,
    expires_at: datetime | None,
    tenant_id: UUID,
    tenant: str,
) -> NewKey:
    made = new_key()
    columns = tenants.key_columns(
        key_id=made.id,
        secret_hash=made.secret_hash,
        tenant_id=tenant_id,
        name=asked.name,
        scopes=sorted(set(asked.scopes)),
        expires_at=expires_at,
        quotas=asked.quotas.stored() if asked.quotas else None,
    )
    row = (await session.scalars(tenants.insert_key(columns))).one()
    return NewKey(**_present(row, tenant).model_dump(), key=made.key)


def _present(row: tenants.ApiKey, tenant: str) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        tenant=tenant,
        scopes=row.scopes,
        quotas=Quotas.model_validate(row.quotas) if row.quotas else None,
        created_at=row.created_at,
        last_used_at=row.last_used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )


# A cursor holds 16 bytes; a key's id is 12 letters and digits.


def _position(key_id: str) -> UUID:
    return UUID(bytes=key_id.encode("ascii").ljust(16, b"\0"))


def _key_id(position: UUID) -> str:
    return position.bytes.rstrip(b"\0").decode("ascii")

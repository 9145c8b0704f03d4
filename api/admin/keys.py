"""The rules of API keys: who may make which, and for whom."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.admin.schemas import Key, KeyRequest, NewKey
from api.context import Resources, require_row
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from shared.core import tenants
from shared.core.keys import ID_LENGTH, new_key
from shared.core.quotas import Quotas
from shared.core.tenants import OPERATOR, may_give


class NoLiveKey(Exception):
    """Nobody could use the API; make a first key with `darkroom-server admin keys create`."""


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
            has_key = (await session.scalars(tenants.has_live_key(datetime.now(UTC)))).one()
    except Problem:
        return
    if not has_key:
        raise NoLiveKey(NoLiveKey.__doc__)


async def create(resources: Resources, principal: Principal, request: KeyRequest) -> NewKey:
    """Make a key of the caller's tenant, or of any for an operator.

    A key that is given no end ends with the caller's.

    Raises:
        Problem: 403 for a scope that the caller does not have, for another tenant without
            `operator`, and for a caller with quotas, who could make its way around them; 422 for
            an end that has passed, or comes after the caller's.
    """
    if request.expires_at is not None and request.expires_at <= datetime.now(UTC):
        raise Problem.invalid("/expires_at", "in_the_past", "The key would have expired already.")
    expires_at = request.expires_at or principal.expires_at
    if _outlives(expires_at, principal):
        message = "It cannot outlive the key you are using."
        raise Problem.invalid("/expires_at", "outlives_maker", message)
    if principal.quotas.stored() and not principal.may(OPERATOR):
        raise Problem("insufficient_scope", "A key with quotas cannot create keys.")
    refused = [scope for scope in request.scopes if not may_give(principal.scopes, scope)]
    if refused:
        detail = f"You cannot grant scopes that you lack: {', '.join(refused)}."
        raise Problem("insufficient_scope", detail)
    async with resources.tenant_transaction(principal) as session:
        own = await _tenant_name(session, principal)
        if request.tenant in (None, own):
            key = await _insert(session, request, expires_at, principal.tenant_id, own)
    if request.tenant in (None, own):
        resources.keys.evict(key.id)
        return key
    if not principal.may(OPERATOR) or request.tenant is None:
        raise Problem("insufficient_scope", "Keys of another tenant need the scope operator.")
    async with resources.transaction() as session:
        tenant_id = (await session.scalars(tenants.ensure_tenant(request.tenant))).one()
        key = await _insert(session, request, expires_at, tenant_id, request.tenant)
    resources.keys.evict(key.id)
    return key


async def list_page(resources: Resources, principal: Principal, paging: PageRequest) -> Page[Key]:
    """One page of the tenant's keys, revoked and expired ones too, in the order of their ids."""
    scope = ("keys", principal.tenant_id)
    before = paging.position(*scope)
    async with resources.tenant_transaction(principal) as session:
        tenant = await _tenant_name(session, principal)
        after = None if before is None else _key_id(before)
        statement = tenants.list_keys(principal.tenant_id, paging.limit + 1, after)
        rows = (await session.scalars(statement)).all()
    return await paging.page(
        rows, lambda row: _serialize(row, tenant), *scope, position=lambda row: _position(row.id)
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
        key = await require_row(session, tenants.get_key(principal.tenant_id, key_id), "key")
        if not _may_revoke(principal, key):
            raise Problem("insufficient_scope", "That key has more rights than yours.")
        await session.execute(tenants.revoke_key(principal.tenant_id, key_id))
    resources.keys.evict(key_id)


async def _tenant_name(session: AsyncSession, principal: Principal) -> str:
    return (await session.scalars(tenants.get_tenant_name(principal.tenant_id))).one()


def _outlives(expires_at: datetime | None, principal: Principal) -> bool:
    """Whether a key with this end is good for longer than the caller's."""
    own = principal.expires_at
    return own is not None and (expires_at is None or expires_at > own)


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
    request: KeyRequest,
    expires_at: datetime | None,
    tenant_id: UUID,
    tenant: str,
) -> NewKey:
    key = new_key()
    quotas = request.quotas.stored() if request.quotas else None
    scopes = sorted(set(request.scopes))
    insertion = tenants.insert_key(
        key, tenant_id, request.name, scopes, expires_at=expires_at, quotas=quotas
    )
    row = (await session.scalars(insertion)).one()
    return NewKey.of(_serialize(row, tenant), key=key.key)


def _serialize(row: tenants.ApiKey, tenant: str) -> Key:
    quotas = Quotas.model_validate(row.quotas) if row.quotas else None
    return Key.of(row, tenant=tenant, quotas=quotas)


# A cursor holds 16 bytes; a key's id is 12 letters and digits.


def _position(key_id: str) -> UUID:
    return UUID(bytes=key_id.encode("ascii").ljust(16, b"\0"))


def _key_id(position: UUID) -> str:
    return position.bytes.rstrip(b"\0").decode("ascii")

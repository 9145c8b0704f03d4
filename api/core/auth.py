"""Who asks: API keys as bearer tokens, their tenant, and their scopes."""

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from api.context import Res, Resources
from api.core.errors import Problem
from api.core.fairness import acting_key
from api.core.principal import Principal
from api.core.quotas import count_request
from shared.core import tenants
from shared.core.keys import matches, parse_key
from shared.core.quotas import NO_QUOTAS, Quotas
from shared.core.tenants import OPERATOR, ApiKey, name_of

_TOUCH_EVERY = timedelta(minutes=1)


_LOOKUP_SECONDS = 5.0


bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`Authorization: Bearer drk_…`. `make run` prints the first key.",
)


Proof = Callable[[ApiKey | None], bool]
"""Whether a request comes from whoever holds this key."""


async def authenticate(
    request: Request, resources: Res, _: Annotated[object, Security(bearer)] = None
) -> Principal:
    """The principal of the request's bearer token; 401 without a live one."""
    return await _principal_of(resources, request, await identify(resources, request))


async def identify(resources: Resources, request: Request) -> ApiKey:
    """The live key of the request's bearer token: nothing is counted yet.

    Raises:
        Problem: 401 without one.
    """
    header = request.headers.get("authorization", "")
    scheme, _separator, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("Send an API key: Authorization: Bearer drk_….")
    parsed = parse_key(token.strip())
    if parsed is None:
        raise unauthenticated("This is not an API key; one is drk_…, whole, with its checksum.")
    return await _find_proven(
        resources, request, parsed.id, lambda key: matches(key.secret_hash if key else None, parsed)
    )


async def prove(resources: Resources, request: Request, key_id: str, proof: Proof) -> Principal:
    """The principal of a live key, if the request proves that its holder sent it; else 401."""
    key = await _find_proven(resources, request, key_id, proof)
    return await _principal_of(resources, request, key)


async def _find_proven(resources: Resources, request: Request, key_id: str, proof: Proof) -> ApiKey:
    """A live key, if the request proves that its holder sent it; else 401.

    `proof` is also asked about None, so that a key that does not exist takes as long.
    """
    key = resources.keys.get(key_id) or await _look_up_in_turn(resources, request, key_id, proof)
    if not proof(key) or key is None or not key.is_live(datetime.now(UTC)):
        raise unauthenticated()
    return key


async def _principal_of(resources: Resources, request: Request, key: ApiKey) -> Principal:
    acting_key.set(key.id)
    structlog.contextvars.bind_contextvars(tenant_id=str(key.tenant_id), key_id=key.id)
    quotas = Quotas.model_validate(key.quotas) if key.quotas else NO_QUOTAS
    rate_is_known = await count_request(resources, request, key.id, quotas)
    return Principal(
        key.tenant_id, key.id, frozenset(key.scopes), quotas, rate_is_known, key.expires_at
    )


async def find_live_key(resources: Resources, key_id: str) -> ApiKey | None:
    """The key of a request that was let in, as it is now or was within the last seconds."""
    key = resources.keys.get(key_id) or await _look_up(resources, key_id, lambda _: True)
    return key if key is not None and key.is_live(datetime.now(UTC)) else None


async def _look_up_in_turn(
    resources: Resources, request: Request, key_id: str, proof: Proof
) -> ApiKey | None:
    """Strangers' lookups wait for each other, by address; those of keys in use pass them by."""
    known = resources.keys.was_known(key_id)
    if not known and resources.keys.is_unknown(key_id):
        return None
    gate = resources.gates.known_keys if known else resources.gates.unknown_keys
    try:
        async with gate.turn(key_id if known else source_of(request), _LOOKUP_SECONDS):
            # Another request with this key may have found it meanwhile.
            return resources.keys.get(key_id) or await _look_up(resources, key_id, proof)
    except TimeoutError:
        raise Problem("too_many_at_once", headers={"Retry-After": "1"}) from None


def source_of(request: Request) -> str:
    """Who counts as one stranger: an IPv4 address, or an IPv6 network of a /64."""
    host = request.client.host if request.client is not None else ""
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False))
    return host


async def _look_up(resources: Resources, key_id: str, proof: Proof) -> ApiKey | None:
    async with resources.keys.lookup(key_id):
        if (known := resources.keys.get(key_id)) is not None:
            return known
        async with resources.transaction() as session:
            key = (await session.scalars(tenants.find_key(key_id))).one_or_none()
            if key is None:
                resources.keys.put_unknown(key_id)
            if key is None or not proof(key):
                return None
            await session.execute(tenants.touch_key(key.id, _TOUCH_EVERY))
            session.expunge(key)
        resources.keys.put(key)
        return key


def unauthenticated(
    detail: str = "The API key is unknown, revoked or expired.",
) -> Problem:
    """401, which tells nobody whether there is or was such a key."""
    return Problem(
        "unauthenticated",
        detail,
        headers={"WWW-Authenticate": 'Bearer realm="darkroom"'},
    )


def require(scope: str) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency: the principal, if its key covers `resource:read` or `resource:write`."""

    async def check(principal: Annotated[Principal, Depends(authenticate)]) -> Principal:
        if not principal.may(scope):
            raise Problem("insufficient_scope", f"This needs the scope {name_of(scope)}.")
        return principal

    return check


JobsRead = Annotated[Principal, Depends(require("jobs:read"))]


JobsWrite = Annotated[Principal, Depends(require("jobs:write"))]


ImagesRead = Annotated[Principal, Depends(require("images:read"))]


ImagesWrite = Annotated[Principal, Depends(require("images:write"))]


SearchRead = Annotated[Principal, Depends(require("search:read"))]


AdminRead = Annotated[Principal, Depends(require("admin:read"))]


AdminWrite = Annotated[Principal, Depends(require("admin:write"))]


Operator = Annotated[Principal, Depends(require(OPERATOR))]

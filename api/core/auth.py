"""Authentication: API keys as bearer tokens, their tenant, and their scopes."""

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from api.context import Res, Resources
from api.core.errors import Problem, problems
from api.core.fairness import acting_key
from api.core.middleware import EXTRA_HEADERS
from api.core.principal import Principal
from api.core.publisher import RedisDown
from shared.core import tenants
from shared.core.keys import matches, parse_key
from shared.core.quotas import NO_QUOTAS, WINDOW, Quotas, Window
from shared.core.tenants import OPERATOR, ApiKey, name_of

_TOUCH_EVERY = timedelta(minutes=1)
_LOOKUP_SECONDS = 5.0
_BASIC_PATHS = "/sdapi/"

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`Authorization: Bearer drk_…`. `make run` prints the first key.",
)

Proof = Callable[[ApiKey | None], bool]
"""Whether a request comes from the holder of this key."""


@problems(
    *("unauthenticated", "rate_limited", "too_many_at_once", "database_unavailable"),
    "validation_failed",  # a parameter that the operation does not know
)
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
    token = _token_of(request)
    if not token:
        raise unauthenticated("Send an API key: Authorization: Bearer drk_….")
    parsed = parse_key(token)
    if parsed is None:
        raise unauthenticated("This is not an API key; a whole one is drk_… with its checksum.")
    return await _find_proven(
        resources, request, parsed.id, lambda key: matches(key.secret_hash if key else None, parsed)
    )


def _token_of(request: Request) -> str:
    """The key that a request sends, if any.

    The web UI's clients know HTTP Basic alone: the key is the password, or the user without one.
    No answer asks for it, or browsers would remember the key and send it for any site.
    """
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic" and request.url.path.startswith(_BASIC_PATHS):
        with contextlib.suppress(ValueError):
            user, _, password = (
                base64.b64decode(sent.strip(), validate=True).decode().partition(":")
            )
            return password.strip() or user.strip()
    return sent.strip() if scheme.lower() == "bearer" else ""


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
    quotas = quotas_of(key)
    rate_is_known = await count_request(resources, request, key.id, quotas)
    return Principal(
        key.tenant_id, key.id, frozenset(key.scopes), quotas, rate_is_known, key.expires_at
    )


def quotas_of(key: ApiKey) -> Quotas:
    """What the key may use."""
    return Quotas.model_validate(key.quotas) if key.quotas else NO_QUOTAS


async def count_request(
    resources: Resources, request: Request, key_id: str, quotas: Quotas
) -> bool:
    """Count the request; False when Redis cannot say: reading continues, spending does not.

    Raises:
        Problem: 429 `rate_limited`.
    """
    if quotas.requests_per_minute is None:
        return True
    try:
        window = await resources.circuit_breaker.call(
            resources.rates.count, key_id, quotas.requests_per_minute
        )
    except RedisDown:
        return False
    request.scope[EXTRA_HEADERS].update(_rate_headers(window))
    if not window.allowed:
        raise Problem(
            "rate_limited",
            f"This key may send {window.limit} requests a minute.",
            headers={"Retry-After": str(window.seconds_to_reset)},
        )
    return True


def _rate_headers(window: Window) -> dict[str, str]:
    """Structured fields of the IETF's draft-ietf-httpapi-ratelimit-headers."""
    return {
        "RateLimit-Policy": f'"requests";q={window.limit};w={WINDOW}',
        "RateLimit": f'"requests";r={window.left};t={window.seconds_to_reset}',
    }


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
    semaphore = resources.semaphores.known_keys if known else resources.semaphores.unknown_keys
    try:
        async with semaphore.turn(key_id if known else source_of(request), _LOOKUP_SECONDS):
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


class InTurn:
    """ASGI middleware that begins one request in each round of the event loop, in turn between
    keys, and between addresses for strangers.

    What a request needs of Postgres or Redis comes back in later rounds, a dozen for a submission.
    If 40 connections got an answer in each, that dozen would take the time of 500 answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            resources: Resources = scope["app"].state.resources
            semaphore, source = resources.semaphores.event_loop, _asker(resources, Request(scope))
            await semaphore.acquire(source)
            asyncio.get_running_loop().call_soon(semaphore.release, source)
        await self._app(scope, receive, send)


def _asker(resources: Resources, request: Request) -> str:
    """The id of the request's key where that costs no lookup; otherwise its address."""
    parsed = parse_key(_token_of(request))
    key = resources.keys.get(parsed.id) if parsed is not None else None
    if parsed is not None and key is not None and matches(key.secret_hash, parsed):
        return key.id
    return source_of(request)


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


def unauthenticated(detail: str = "The API key is unknown, revoked or expired.") -> Problem:
    """401, which tells nobody whether there is or was such a key."""
    return Problem(
        "unauthenticated", detail, headers={"WWW-Authenticate": 'Bearer realm="darkroom"'}
    )


def require(scope: str) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency: the principal, if its key covers `resource:read` or `resource:write`."""

    @problems("insufficient_scope")
    async def check(principal: Annotated[Principal, Depends(authenticate)]) -> Principal:
        if not principal.may(scope):
            raise Problem("insufficient_scope", f"This needs the scope {name_of(scope)}.")
        return principal

    return check


JobsRead = Annotated[Principal, Depends(require("jobs:read"))]
JobsWrite = Annotated[Principal, Depends(require("jobs:write"))]
ImagesRead = Annotated[Principal, Depends(require("images:read"))]
ImagesWrite = Annotated[Principal, Depends(require("images:write"))]
LorasWrite = Annotated[Principal, Depends(require("loras:write"))]
SearchRead = Annotated[Principal, Depends(require("search:read"))]
AdminRead = Annotated[Principal, Depends(require("admin:read"))]
AdminWrite = Annotated[Principal, Depends(require("admin:write"))]
Operator = Annotated[Principal, Depends(require(OPERATOR))]

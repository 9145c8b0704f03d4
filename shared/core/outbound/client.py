"""The one HTTP client for URLs that users give: webhooks, and initial images by https.

Built on `httpcore2`, the layer under `httpx2`, and not on `httpx2` itself: redirects, proxies from
the environment, cookies, decompression and connection pools are then not switched off but absent.
Each exchange has a connection of its own, so each is checked again.
"""

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore2

from shared.core.outbound.addresses import OutboundPolicy
from shared.core.outbound.connector import (
    Deadline,
    GuardedBackend,
    Limits,
    Resolver,
    system_resolver,
)
from shared.core.outbound.url import ConnectionFailed, ResponseInvalid, Target, check_url

_MAX_HEADER_BYTES = 32 * 1024

# These frame the message or say whom it is for; a caller who set them could contradict the guard.
_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


@dataclass(frozen=True, slots=True)
class OutboundResponse:
    """What came back. A redirect (3xx) is an answer like any other.

    `headers` have lower-case names; repeated ones are joined with ", ". `body` has at most the
    bytes asked for, as they were sent (never decompressed); `truncated` tells that there were
    more. `elapsed_s` is the whole exchange in seconds, the DNS included.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool
    elapsed_s: float


class GuardedClient:
    """Sends requests where `policy` allows. Has no state; threads may share it."""

    def __init__(
        self,
        policy: OutboundPolicy,
        *,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`ssl_context` defaults to one with the system's certificates."""
        self._policy = policy
        self._resolver = resolver
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        *,
        deadline_s: float = 15.0,
        max_bytes: int = 64 * 1024,
    ) -> OutboundResponse:
        """One request and its answer, or a kind of `OutboundError` (see its module).

        `deadline_s` holds for the whole exchange, from the DNS to the last byte. `max_bytes` of
        the answer's body are read; then the connection is closed.
        """
        started = time.monotonic()
        target = check_url(url, self._policy)
        limits = Limits(Deadline(deadline_s), _MAX_HEADER_BYTES)
        request = _request(method, target, headers or {}, content)
        connection = httpcore2.HTTPConnection(
            origin=request.url.origin,
            ssl_context=self._ssl_context,
            network_backend=GuardedBackend(target, self._policy, self._resolver, limits),
        )
        try:
            response = connection.handle_request(request)
            limits.header_bytes = None
            body, truncated = _read_body(response, max_bytes)
        except httpcore2.RemoteProtocolError:
            if limits.ended:
                raise ConnectionFailed("The connection was closed too early.") from None
            raise ResponseInvalid("The answer is not valid HTTP.") from None
        except httpcore2.LocalProtocolError as error:
            raise ValueError(f"Not a valid request: {error}") from error
        finally:
            connection.close()
        return OutboundResponse(
            status=response.status,
            headers=_joined(response.headers),
            body=body,
            truncated=truncated,
            elapsed_s=time.monotonic() - started,
        )


def _request(
    method: str, target: Target, headers: Mapping[str, str], content: bytes
) -> httpcore2.Request:
    fields = {name.lower(): value for name, value in headers.items()}
    if not _OURS.isdisjoint(fields):
        raise ValueError(f"Not for callers to set: {sorted(_OURS & fields.keys())}.")
    fields = {
        "host": target.host_header,
        "accept-encoding": "identity",
        "connection": "close",
        **({"content-length": str(len(content))} if content or method != "GET" else {}),
        "user-agent": "Darkroom",
        **fields,
    }
    return httpcore2.Request(
        method=method,
        url=httpcore2.URL(
            scheme=target.scheme.encode(),
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        ),
        headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()],
        content=content,
    )


def _read_body(response: httpcore2.Response, max_bytes: int) -> tuple[bytes, bool]:
    """At most `max_bytes` of the body, and whether there was more."""
    body = bytearray()
    for part in response.iter_stream():
        body += part
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), True
    return bytes(body), False


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined

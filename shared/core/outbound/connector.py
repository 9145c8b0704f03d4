"""Make the connections: resolve once, judge every address, dial the very address judged.

The check sits here, under the HTTP library, because whatever dials decides. A check before the
call would resolve the name a second time, and whoever runs its DNS may answer differently then
("rebinding"). The name still goes into the TLS handshake (SNI, certificate) and the Host field.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpcore2

from shared.core.outbound.addresses import IPAddress, OutboundPolicy
from shared.core.outbound.url import (
    ConnectionFailed,
    DeadlineExceeded,
    OutboundError,
    ResponseInvalid,
    Target,
    TlsFailed,
    UnresolvableHost,
    check_address,
)

Resolver = Callable[[str], Sequence[IPAddress]]
"""Gives a name's addresses, best first; raises OSError when it has none."""

_MOST_DIALLED = 4  # Addresses tried before giving up; all of them are judged.


class Deadline:
    """One point in time for a whole exchange. Limits per read let a slow drip go on for ever."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds left, more than 0; raises `DeadlineExceeded` when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("The exchange took too long.")
        return left


@dataclass(slots=True)
class Limits:
    """What one exchange may still take, shared by its connection's layers.

    `header_bytes` is None once the response's header is whole; `ended` tells that the peer closed.
    """

    deadline: Deadline
    header_bytes: int | None
    ended: bool = False


def system_resolver(host: str) -> list[IPAddress]:
    """What the operating system answers, in its order of preference (RFC 6724)."""
    resolved = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(entry[4][0])) for entry in resolved))


def resolve(host: str, resolver: Resolver, deadline: Deadline) -> list[IPAddress]:
    """The addresses of `host`, asked once, and waited for no longer than `deadline` allows.

    The system's resolver has no time limit, so it is asked on a thread that is left behind when
    it is too slow: it ends by itself after the system's own retries (seconds, not minutes).
    """
    answers: list[Sequence[IPAddress]] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(resolver(host))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded.
            failures.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(deadline.remaining())
    if thread.is_alive():
        raise DeadlineExceeded("The DNS did not answer in time.")
    if failures or not answers or not answers[0]:
        raise UnresolvableHost("The host's name has no address.")
    return list(answers[0])


class GuardedBackend(httpcore2.NetworkBackend):
    """Connects one exchange to `target`, within `limits`."""

    def __init__(
        self, target: Target, policy: OutboundPolicy, resolver: Resolver, limits: Limits
    ) -> None:
        self._target = target
        self._policy = policy
        self._resolver = resolver
        self._limits = limits

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the target is what was checked, and these were made from it
        port: int,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002 - the deadline holds for everything
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """Resolve, judge and dial. Raises a kind of `OutboundError`."""
        target = self._target
        if target.address is not None:
            addresses = [target.address]
        else:
            addresses = resolve(target.host, self._resolver, self._limits.deadline)
        # All must pass, not just one: a name with addresses inside and outside is a trap.
        for address in addresses:
            check_address(address, target.port, self._policy)
        return GuardedStream(self._dial(addresses[:_MOST_DIALLED]), self._limits)

    def _dial(self, addresses: Sequence[IPAddress]) -> socket.socket:
        for index, address in enumerate(addresses):
            # A share of the time each, so that one dead address does not cost it all.
            share = self._limits.deadline.remaining() / (len(addresses) - index)
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(share)
                sock.connect((str(address), self._target.port))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                sock.close()
            else:
                return sock
        self._limits.deadline.remaining()  # "Out of time" is told from "out of reach".
        raise ConnectionFailed("No connection could be made.")


class GuardedStream(httpcore2.NetworkStream):
    """A connection whose every step is held to the exchange's limits."""

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        self._sock = sock
        self._limits = limits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Up to `max_bytes`, fewer while the header's own limit is nearer; empty at the end."""
        limits = self._limits
        if limits.header_bytes is not None:
            if limits.header_bytes == 0:
                raise ResponseInvalid("The response's header is too large.")
            max_bytes = min(max_bytes, limits.header_bytes)
        self._sock.settimeout(limits.deadline.remaining())
        try:
            data = self._sock.recv(max_bytes)
        except TimeoutError:
            raise DeadlineExceeded("The response did not come in time.") from None
        except OSError:
            raise ConnectionFailed("The connection broke.") from None
        if limits.header_bytes is not None:
            limits.header_bytes -= len(data)
        limits.ended = limits.ended or not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """All of `buffer`. `WriteError` makes the HTTP library look for an early answer."""
        view = memoryview(buffer)
        while view:
            self._sock.settimeout(self._limits.deadline.remaining())
            try:
                view = view[self._sock.send(view) :]
            except TimeoutError:
                raise DeadlineExceeded("The request was not taken in time.") from None
            except OSError as error:
                raise httpcore2.WriteError(str(error)) from None

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        """The same connection under TLS, its certificate checked for `server_hostname`."""
        try:
            self._sock.settimeout(self._limits.deadline.remaining())
            secured = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
        except TimeoutError:
            self.close()
            raise DeadlineExceeded("The TLS handshake took too long.") from None
        except ssl.SSLCertVerificationError as error:
            self.close()
            raise TlsFailed(f"The certificate is not trusted: {error.verify_message}.") from None
        except (OSError, ValueError):  # ValueError: a host that no certificate can be for.
            self.close()
            raise TlsFailed("There was no TLS handshake.") from None
        except OutboundError:
            self.close()
            raise
        return GuardedStream(secured, self._limits)

    def close(self) -> None:
        self._sock.close()

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002
        """Nothing: the HTTP library would ask for the protocol negotiated, which is HTTP/1.1."""
        return None

"""Take a user's URL apart strictly, once; and why a request to it failed.

`retryable` says whether the same request may well succeed later. A name can come to lead
somewhere else, but nobody should be asked to try until it leads inside.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import ClassVar
from urllib.parse import quote, urlsplit

import idna

from shared.core.outbound.addresses import IPAddress, OutboundPolicy, is_allowed, is_in


class OutboundError(Exception):
    """A request to a user's URL failed; the message names no address behind the user's name."""

    code: ClassVar[str]
    retryable: ClassVar[bool] = False


class UrlNotAllowed(OutboundError):
    """The URL's form, scheme, host or port is not allowed."""

    code = "url_not_allowed"


class AddressNotAllowed(OutboundError):
    """The host is, or leads to, an address outside the public internet."""

    code = "address_not_allowed"


class UnresolvableHost(OutboundError):
    """The host's name has no address, or the DNS did not respond."""

    code = "unresolvable_host"
    retryable = True


class ConnectionFailed(OutboundError):
    """The connection was refused, could not be made, or broke before the answer was whole."""

    code = "connection_failed"
    retryable = True


class TlsFailed(OutboundError):
    """There was no TLS handshake, or the certificate is not to be trusted for this host."""

    code = "tls_failed"
    retryable = True


class ResponseInvalid(OutboundError):
    """The answer is not HTTP, or its header is larger than the limit."""

    code = "response_invalid"
    retryable = True


class DeadlineExceeded(OutboundError):
    """The exchange, from the name's resolution to the last byte, did not end in time."""

    code = "deadline_exceeded"
    retryable = True


# The parsers of this world disagree about odd URLs, and a check by one parser says little about
# what another dials. So odd forms are refused, and what is dialled, put into the Host field and
# compared with the certificate all comes from the same parts.
#
# Sources: RFC 3986; the WHATWG URL standard's "ends in a number" rule; UTS 46 by way of `idna`.

MAX_URL_LENGTH = 2048
_DEFAULT_PORTS = {"https": 443, "http": 80}
_MAX_HOST_LENGTH = 253
_LARGEST_PORT = 65535

# Spaces, control characters and backslashes: parsers drop, encode or turn them, each its own way.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@%]+)(?::([0-9]{1,5}))?", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

# What may stand in a path and query as it is; "%" so that what is encoded stays so.
_TARGET_SAFE = "%/:@!$&'()*+,;=?-._~"


@dataclass(frozen=True, slots=True)
class Target:
    """A URL's parts: `host` in lower-case ASCII, an address in its usual spelling, no brackets."""

    scheme: str
    host: str
    port: int
    path: str
    address: IPAddress | None

    @property
    def host_header(self) -> str:
        """The value of the Host field (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if isinstance(self.address, IPv6Address) else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check_url(url: str, policy: OutboundPolicy) -> Target:
    """The parts of `url`, as far as it can be judged without asking the DNS.

    Enough to tell a user at registration; not enough to dial, for which `GuardedClient` judges
    the addresses too. Raises `UrlNotAllowed` for the form, the scheme or the port, and
    `AddressNotAllowed` for an address that is not public.
    """
    target = _parse(url)
    if target.scheme == "http" and not policy.allow_http:
        raise UrlNotAllowed("Only https URLs are allowed.")
    if target.address is not None:
        check_address(target.address, target.port, policy)
    elif target.port not in policy.allowed_ports and not policy.allowed_networks:
        raise _port_refused(policy)
    return target


def check_address(address: IPAddress, port: int, policy: OutboundPolicy) -> None:
    """Raise unless `policy` lets a connection go to `address` and `port`."""
    if not is_allowed(address, policy.allowed_networks):
        raise AddressNotAllowed("The host is, or leads to, an address that is not public.")
    if port not in policy.allowed_ports and not is_in(address, policy.allowed_networks):
        raise _port_refused(policy)


def _port_refused(policy: OutboundPolicy) -> UrlNotAllowed:
    ports = " and ".join(str(port) for port in sorted(policy.allowed_ports))
    return UrlNotAllowed(f"Only the ports {ports} are allowed.")


def _parse(url: str) -> Target:
    if len(url) > MAX_URL_LENGTH:
        raise UrlNotAllowed(f"A URL may have {MAX_URL_LENGTH} characters at most.")
    if _AMBIGUOUS.search(url):
        raise UrlNotAllowed("A URL must not have spaces, control characters or backslashes.")
    try:
        parts = urlsplit(url)
        # Surrogates cannot be encoded; urlsplit refuses some hosts itself.
        path = quote(parts.path or "/", safe=_TARGET_SAFE)
        query = quote(parts.query, safe=_TARGET_SAFE)
    except ValueError:
        raise UrlNotAllowed("This is not a URL.") from None
    if parts.scheme not in _DEFAULT_PORTS or not url[len(parts.scheme) :].startswith("://"):
        raise UrlNotAllowed("Only https:// URLs are allowed.")
    if "@" in parts.netloc:
        raise UrlNotAllowed("A URL must not have a user name or password.")
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None:
        raise UrlNotAllowed("The URL's host or port is malformed.")
    host, address = _parse_host(authority[1])
    port = int(authority[2]) if authority[2] else _DEFAULT_PORTS[parts.scheme]
    if not 1 <= port <= _LARGEST_PORT:
        raise UrlNotAllowed("The URL's port is malformed.")
    return Target(parts.scheme, host, port, f"{path}?{query}" if query else path, address)


def _parse_host(text: str) -> tuple[str, IPAddress | None]:
    """The host in lower-case ASCII and, where it is one, the address."""
    if text.startswith("["):
        try:
            six = IPv6Address(text[1:-1])
        except AddressValueError:
            raise UrlNotAllowed("The URL's IPv6 address is malformed.") from None
        return str(six), six
    host = _to_ascii(text)
    labels = host.split(".")
    if len(host) > _MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlNotAllowed("The URL's host is malformed.")
    if _NUMBER.fullmatch(labels[-1]):
        # No top-level domain is a number, but 127.1, 0177.0.0.1, 2130706433 and 0x7f.1 are
        # addresses to most resolvers. Only the one usual spelling is taken.
        try:
            four = IPv4Address(host)
        except AddressValueError:
            raise UrlNotAllowed("An IPv4 address must be four decimal numbers.") from None
        return host, four
    if labels[-1] == "localhost":  # RFC 6761, 6.3: always loopback, so known without the DNS.
        return host, IPv4Address("127.0.0.1")
    return host, None


def _to_ascii(host: str) -> str:
    """`host` as the DNS knows it: full-width digits, odd dots and the like become plain first."""
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError, ValueError):
        raise UrlNotAllowed("The URL's host is not a valid international name.") from None

"""Which IP addresses a user's URL may lead to: the public internet, and what the operator names.

`ipaddress.is_global` is not enough: Python 3.11's lets multicast pass, and NAT64 and 6to4
addresses that wrap 169.254.169.254. Here IPv4 is judged by a list of what is not public, and IPv6
the other way round: only global unicast (2000::/3) may pass, less the parts of it that are
reserved. An IPv6 address with an IPv4 address inside passes only if both do.

Sources: IANA's IPv4 and IPv6 special-purpose address registries (RFC 6890 and its updates), RFC
4291 (v4-mapped, v4-compatible), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 6052 and 8215 (NAT64),
RFC 5214 (ISATAP).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep their metadata here
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; most clouds keep their metadata here
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")

_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

_MAPPED, _COMPATIBLE = IPv6Network("::ffff:0:0/96"), IPv6Network("::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_SIX_TO_FOUR, _TEREDO = IPv6Network("2002::/16"), IPv6Network("2001::/32")
_NAT64, _LOCAL_NAT64 = IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48")

# The upper half of an ISATAP interface identifier, with and without the "universal" bit.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_allowed(address: IPAddress, allowed_networks: Sequence[IPNetwork]) -> bool:
    """Whether `address` is public or in one of `allowed_networks`, and so are those inside it."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return False
    return all(
        _is_public(face) or is_in(face, allowed_networks)
        for face in (address, *embedded_ipv4(address))
    )


def is_in(address: IPAddress, networks: Sequence[IPNetwork]) -> bool:
    """Whether one of `networks` has `address`."""
    return any(address in network for network in networks if network.version == address.version)


def embedded_ipv4(address: IPAddress) -> Iterator[IPv4Address]:
    """The IPv4 addresses that an IPv6 address may stand for on its way."""
    if isinstance(address, IPv4Address):
        return
    value = int(address)
    if value == 1:
        return  # "::1" is the loopback address and wraps no other (RFC 4291, 2.5.3)
    if any(address in network for network in (_MAPPED, _COMPATIBLE, _TRANSLATED, _NAT64)):
        yield IPv4Address(value & 0xFFFF_FFFF)
    if address in _LOCAL_NAT64:
        yield IPv4Address(value & 0xFFFF_FFFF)  # a /96 within the block
        # RFC 6052, 2.2: a /48 has two bytes before and two behind the byte that must be zero.
        yield IPv4Address((value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF)
    if address in _SIX_TO_FOUR:
        yield IPv4Address(value >> 80 & 0xFFFF_FFFF)
    if address in _TEREDO:
        yield IPv4Address(value >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(~value & 0xFFFF_FFFF)
    if value >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield IPv4Address(value & 0xFFFF_FFFF)


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, IPv4Address):
        return not is_in(address, _NOT_PUBLIC_V4)
    return address in _GLOBAL_UNICAST_V6 and not is_in(address, _NOT_PUBLIC_V6)


@dataclass(frozen=True, slots=True)
class OutboundPolicy:
    """Https to public addresses on the usual ports, and what is named here besides.

    `allow_http` admits http URLs. `allowed_networks` are reached although they are not public,
    and on any port. `allowed_ports` are those of public addresses.
    """

    allow_http: bool = False
    allowed_networks: tuple[IPNetwork, ...] = ()
    allowed_ports: frozenset[int] = frozenset({80, 443})


LOOPBACK: tuple[IPNetwork, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
"""What the embedded stack allows, so that webhooks can be tried out on one machine."""

"""What the operator allows of users' URLs."""

from dataclasses import dataclass
from ipaddress import ip_network

from shared.outbound.addresses import IPNetwork


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

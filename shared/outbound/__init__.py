"""Requests to URLs that users give, through the one guard against reaching inside."""

from shared.outbound.client import GuardedClient, OutboundResponse
from shared.outbound.connector import Resolver
from shared.outbound.errors import (
    AddressNotAllowed,
    ConnectionFailed,
    DeadlineExceeded,
    OutboundError,
    ResponseInvalid,
    TlsFailed,
    UnresolvableHost,
    UrlNotAllowed,
)
from shared.outbound.policy import LOOPBACK, OutboundPolicy
from shared.outbound.url import check_url

__all__ = [
    "LOOPBACK",
    "AddressNotAllowed",
    "ConnectionFailed",
    "DeadlineExceeded",
    "GuardedClient",
    "OutboundError",
    "OutboundPolicy",
    "OutboundResponse",
    "Resolver",
    "ResponseInvalid",
    "TlsFailed",
    "UnresolvableHost",
    "UrlNotAllowed",
    "check_url",
]

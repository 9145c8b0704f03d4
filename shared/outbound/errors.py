"""Why a request to a user's URL was not made or did not end: one type per cause, stable codes.

The tree, drawn once::

    OutboundError
    ├── UrlNotAllowed         url_not_allowed       its form, scheme or port; nothing was dialled
    ├── AddressNotAllowed     address_not_allowed   it leads to an address that is not public
    ├── UnresolvableHost      unresolvable_host     the name has no address, or the DNS no answer
    ├── ConnectionFailed      connection_failed     refused, unreachable, reset, cut off
    ├── TlsFailed             tls_failed            no handshake, or a certificate not to be trusted
    ├── ResponseInvalid       response_invalid      not HTTP, or a header beyond its limit
    └── DeadlineExceeded      deadline_exceeded     the whole exchange took too long

`retryable` says whether the same request may well succeed later. A name can come to lead
somewhere else, but nobody should be asked to try until it leads inside.
"""

from typing import ClassVar


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
    """The host's name has no address, or the DNS gave no answer."""

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

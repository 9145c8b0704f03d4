"""Where a page of sessions ended, as the text that clients give back."""

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta

from api.problems import Problem

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_BYTES = 8
_CHECKSUM = 8


def encode(created_at: datetime, session_id: str, *scope: object) -> str:
    """An opaque text, bound by a checksum to `scope`."""
    microseconds = (created_at - _EPOCH) // timedelta(microseconds=1)
    raw = microseconds.to_bytes(_TIME_BYTES) + session_id.encode()
    return base64.urlsafe_b64encode(raw + _checksum(raw, scope)).decode().rstrip("=")


def decode(text: str, *scope: object) -> tuple[datetime, str]:
    """The position behind the text.

    Raises:
        Problem: it is damaged, forged, or of another tenant.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        body, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
        if len(body) <= _TIME_BYTES or checksum != _checksum(body, scope):
            raise ValueError("of another list")
        microseconds = int.from_bytes(body[:_TIME_BYTES])
        session_id = body[_TIME_BYTES:].decode()
        if "\0" in session_id:
            raise ValueError("no session has such an id")
        return _EPOCH + timedelta(microseconds=microseconds), session_id
    except (binascii.Error, ValueError, OverflowError):
        raise Problem("malformed_cursor") from None


def _checksum(raw: bytes, scope: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(raw + repr(scope).encode(), digest_size=_CHECKSUM).digest()

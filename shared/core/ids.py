"""Typed ids: a UUIDv7 in the database, `job_01jd…` on the wire.

The suffix is the 128-bit number in Crockford's base 32, lower case, 26 characters, as in the
TypeID specification: sortable by creation, safe in URLs, selectable with a double click.
"""

import re
from base64 import b32encode
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import uuid6

Prefix = Literal["job", "img", "batch", "upl", "whe", "whd", "evt", "ten"]
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FROM_RFC_4648 = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", _ALPHABET.encode())
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_SUFFIX = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


class MalformedId(ValueError):
    """The text is not an id of the expected kind."""


def new_id() -> UUID:
    """A fresh UUIDv7: its first 48 bits are the milliseconds of its making."""
    return UUID(bytes=uuid6.uuid7().bytes)


def earliest_id_at(moment: datetime, margin: timedelta = timedelta()) -> UUID:
    """The smallest id of that millisecond: ids are ordered by the time of their making.

    `margin` is added. What lies before 1970 gives the smallest id of all.
    """
    milliseconds = int((moment.timestamp() + margin.total_seconds()) * 1000)
    return UUID(int=max(milliseconds, 0) << 80)


def encode_id(prefix: Prefix, value: UUID) -> str:
    """`job_` and the 26-character base-32 form of the UUID."""
    # 26 characters are 130 bits: two zeros before the 128 of the UUID, and six of padding behind.
    suffix = b32encode((value.int << 6).to_bytes(17, "big"))[:26].translate(_FROM_RFC_4648).decode()
    return f"{prefix}_{suffix}"


def decode_id(prefix: Prefix, text: str) -> UUID:
    """The UUID behind a wire id.

    Raises:
        MalformedId: another prefix, another length, or characters outside the alphabet.
    """
    head, _, suffix = text.partition("_")
    if head != prefix or not _SUFFIX.fullmatch(suffix):
        raise MalformedId(f"not an id of the form {prefix}_…")
    number = 0
    for character in suffix:
        number = number << 5 | _VALUES[character]
    return UUID(int=number)

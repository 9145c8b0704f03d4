"""API keys: how they are made, read, checked and kept out of logs.

A key is `drk_<id>_<secret><checksum>`, all base62 (0-9, A-Z, a-z):

- `id`, 12 characters, is public: the row is found by it, and logs and lists may show it.
- `secret`, 27 characters, has log2(62^27) = 160.8 bits from the operating system.
- `checksum`, 6 characters, is the CRC32 of all that stands before it. Typing errors are caught
  before the database is asked, and secret scanners can tell a key from a look-alike. (The idea is
  that of GitHub's token format, 2021. Anybody can compute it, so it protects nothing.)

Only the SHA-256 of the whole key is stored. A slow hash would add nothing against guessing 160
random bits, and would cost every request. Since the hash covers the id, a stored hash that is
copied to another row matches no key.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from typing import NamedTuple

PREFIX = "drk"
ID_LENGTH = 12
SECRET_LENGTH = 27
CHECKSUM_LENGTH = 6
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

_KEY = re.compile(
    rf"{PREFIX}_([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)

# Wider than a key: what was cut off, mistyped or run together is masked as well. So are stream
# tickets (`drt_…`), which are good for one job's events.
_LOOKS_LIKE_A_KEY = re.compile(
    rf"(dr[kt])_(?:([0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z_-]+|[0-9A-Za-z_-]{{20,}})", re.IGNORECASE
)

_NO_HASH = bytes(hashlib.sha256().digest_size)


class GeneratedKey(NamedTuple):
    """A key just made. `key` is shown to its owner once and never stored."""

    key: str
    id: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"GeneratedKey(id={self.id!r})"


class ParsedKey(NamedTuple):
    """A well-formed key from a request: what to look up, and what to compare with."""

    id: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"ParsedKey(id={self.id!r})"


def new_key() -> GeneratedKey:
    """A new key from the operating system's random source."""
    key_id = _random(ID_LENGTH)
    body = f"{PREFIX}_{key_id}_{_random(SECRET_LENGTH)}"
    key = body + _checksum(body)
    return GeneratedKey(key, key_id, _hash(key))


def parse_key(text: str) -> ParsedKey | None:
    """The id and hash of a key whose form and checksum are right; None for any other text."""
    match = _KEY.fullmatch(text)
    if match is None:
        return None
    # Compared plainly: the checksum is computed from public rules and guards no secret.
    if _checksum(text[:-CHECKSUM_LENGTH]) != text[-CHECKSUM_LENGTH:]:
        return None
    return ParsedKey(match[1], _hash(text))


def matches(stored_hash: bytes | None, parsed: ParsedKey) -> bool:
    """Whether `parsed` is the key that `stored_hash` was made from, in constant time.

    Pass None when no row has the id: the comparison then takes as long and is always false.
    """
    same = hmac.compare_digest(_NO_HASH if stored_hash is None else stored_hash, parsed.secret_hash)
    return same and stored_hash is not None


def redact(text: str) -> str:
    """`text` with the secret of every key and ticket masked; the public id stays, to search by."""
    return _LOOKS_LIKE_A_KEY.sub(_mask, text)


def _mask(match: re.Match[str]) -> str:
    kind = match[1].lower()
    return f"{kind}_{match[2]}_[redacted]" if match[2] else f"{kind}_[redacted]"


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(body: str) -> str:
    """The CRC32 of `body` in base62, most significant character first, 6 characters."""
    value = zlib.crc32(body.encode("ascii"))
    characters = ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_BASE62))
        characters = _BASE62[digit] + characters
    return characters


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()

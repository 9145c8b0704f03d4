"""Where a page of a search ended, as the text that clients give back."""

import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from api.problems import Problem
from shared.search.lexical import MAX_WORDS, Lexical, Word
from shared.search.question import Position

_HEAD = struct.Struct(">BBId16s16s")
_WORD = struct.Struct(">HBB")
_CHECKSUM = 8


class Phase(IntEnum):
    """Which rows a search is going through; see `shared.search.statements`."""

    FEW = 1
    MANY = 2
    REST = 3


@dataclass(frozen=True)
class Cursor:
    """How to go on: the phase, the last entry, and the weights that the first page gave words."""

    phase: Phase
    position: Position
    lexical: Lexical


def encode(cursor: Cursor, words: Sequence[str], *scope: object) -> str:
    """An opaque text, bound by a checksum to `scope` (tenant, query, filters).

    `words` are all words of the query in a fixed order; the cursor keeps their numbers.
    """
    here = cursor.position
    raw = _HEAD.pack(
        cursor.phase,
        len(cursor.lexical.words),
        cursor.lexical.whole,
        here.score,
        here.prompt_id.bytes,
        here.image_id.bytes,
    )
    for word in cursor.lexical.words:
        raw += _WORD.pack(words.index(word.text), word.weight, word.rare)
    return base64.urlsafe_b64encode(raw + _checksum(raw, scope)).decode().rstrip("=")


def decode(text: str, words: Sequence[str], *scope: object) -> Cursor:
    """The cursor behind the text.

    Raises:
        Problem: it is damaged, forged, or of another search.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        body, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
        if checksum != _checksum(body, scope):
            raise ValueError("of another search")
        phase, count, whole, score, prompt_id, image_id = _HEAD.unpack_from(body)
        if count > MAX_WORDS or len(body) != _HEAD.size + count * _WORD.size:
            raise ValueError("of another length")
        if count and not whole:
            raise ValueError("without weight")
        chosen = [
            Word(words[index], weight, bool(rare))
            for index, weight, rare in _WORD.iter_unpack(body[_HEAD.size :])
        ]
        position = Position(score, UUID(bytes=prompt_id), UUID(bytes=image_id))
        return Cursor(Phase(phase), position, Lexical(tuple(chosen), whole))
    except (binascii.Error, ValueError, IndexError, struct.error):
        raise Problem("malformed_cursor") from None


def _checksum(raw: bytes, scope: tuple[object, ...]) -> bytes:
    said = "\0".join(map(repr, scope)).encode("utf-8", "backslashreplace")
    return hashlib.blake2b(raw + said, digest_size=_CHECKSUM).digest()

"""Where a page of a search ended, as the text that clients give back."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from api.core.errors import Problem
from api.core.serialization import peek, seal, unseal
from shared.search.query import Phase, Position
from shared.search.terms import MAX_WORDS, Lexical, Word

_HEAD = struct.Struct(">BBBId16s16s")
_WORD = struct.Struct(">HBB")
_MODEL = 4
"""Bytes of a hash: a system has vectors of one model, or of two while it changes them."""


@dataclass(frozen=True)
class Cursor:
    """How to continue: the phase, the last entry, and what scored the first page."""

    phase: Phase
    position: Position
    lexical: Lexical
    """The weights that the first page gave the query's words."""
    models: frozenset[bytes] = frozenset()
    """`model_digest` of the models whose vectors of the query the first page had."""


def model_digest(model: str) -> bytes:
    """What a cursor keeps of an embedding model's name."""
    return hashlib.blake2b(model.encode(), digest_size=_MODEL).digest()


def encode(cursor: Cursor, words: Sequence[str], *scope: object) -> str:
    """An opaque text, bound by a checksum to `scope` (tenant, query, filters).

    `words` are all words of the query in a fixed order; the cursor keeps their numbers.
    """
    here = cursor.position
    raw = _HEAD.pack(
        *(cursor.phase, len(cursor.lexical.words), len(cursor.models), cursor.lexical.whole),
        *(here.score, here.prompt_id.bytes, here.image_id.bytes),
    )
    for word in cursor.lexical.words:
        raw += _WORD.pack(words.index(word.text), word.weight, word.rare)
    return seal(raw + b"".join(sorted(cursor.models)), *scope)


def decode(text: str, words: Sequence[str], *scope: object) -> Cursor:
    """The cursor behind the text.

    Raises:
        Problem: it is damaged, forged, or of another search.
    """
    body = unseal(text, *scope)
    try:
        phase, count, models, whole, score, prompt_id, image_id = _HEAD.unpack_from(body)
        end = _HEAD.size + count * _WORD.size
        if count > MAX_WORDS or len(body) != end + models * _MODEL:
            raise ValueError("of another length")
        if count and not whole:
            raise ValueError("without weight")
        chosen = [
            Word(words[index], weight, bool(rare))
            for index, weight, rare in _WORD.iter_unpack(body[_HEAD.size : end])
        ]
        position = Position(score, UUID(bytes=prompt_id), UUID(bytes=image_id))
        return Cursor(Phase(phase), position, Lexical(tuple(chosen), whole), _models_in(body))
    except (ValueError, IndexError, struct.error):
        raise Problem("malformed_cursor") from None


def models_of(text: str) -> frozenset[bytes]:
    """The models that a cursor names, unchecked: the query's vectors are fetched before its words
    are known, without which a cursor cannot be decoded. Empty for anything but a cursor.
    """
    try:
        return _models_in(peek(text))
    except (Problem, IndexError):
        return frozenset()


def _models_in(body: bytes) -> frozenset[bytes]:
    start = _HEAD.size + body[1] * _WORD.size
    here = range(start, start + body[2] * _MODEL, _MODEL)
    return frozenset(body[at : at + _MODEL] for at in here)

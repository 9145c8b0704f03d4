"""Cursors of searches and sessions: what was encoded comes back, anything else is refused."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.errors import Problem
from api.core.serialization import seal
from api.images import sessions
from api.search import cursor
from api.search.cursor import Cursor
from shared.core.ids import new_id
from shared.search.query import Phase, Position
from shared.search.terms import Lexical, Word

WORDS = ["a", "kraken", "lake"]
CURSOR = Cursor(
    Phase.ANN,
    Position(0.123456, new_id(), new_id()),
    Lexical((Word("kraken", 255, True), Word("a", 3, False)), 300),
    frozenset({cursor.model_digest("former"), cursor.model_digest("later")}),
)


def test_a_cursor_comes_back_whole() -> None:
    assert cursor.decode(cursor.encode(CURSOR, WORDS, "x", 1), WORDS, "x", 1) == CURSOR


def test_its_models_can_be_read_beforehand() -> None:
    assert cursor.models_of(cursor.encode(CURSOR, WORDS, "x", 1)) == CURSOR.models
    for damaged in ("", "AA", "雪", "A" * 200):
        cursor.models_of(damaged)


def test_a_cursor_is_of_its_search_alone() -> None:
    text = cursor.encode(CURSOR, WORDS, "x", 1)
    with pytest.raises(Problem):
        cursor.decode(text, WORDS, "x", 2)


@given(st.data())
def test_a_changed_bit_is_noticed(data: st.DataObject) -> None:
    text = cursor.encode(CURSOR, WORDS, "x")
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Problem):
        cursor.decode(base64.urlsafe_b64encode(raw).decode().rstrip("="), WORDS, "x")


@given(st.text(max_size=200))
def test_any_text_is_refused_and_nothing_worse(text: str) -> None:
    for decode in (lambda: cursor.decode(text, WORDS, "x"), lambda: sessions.decode(text, "x")):
        with pytest.raises(Problem) as refused:
            decode()
        assert refused.value.kind.code == "malformed_cursor"


def test_a_forged_cursor_with_a_right_checksum_is_refused_too() -> None:
    """The checksum has no secret; what it protects must hold without it."""
    for body in (b"", b"\x09" * 47, cursor._HEAD.pack(1, 8, 0, 0, 1.0, b"1" * 16, b"2" * 16)):
        text = seal(body, "x")
        with pytest.raises(Problem):
            cursor.decode(text, WORDS, "x")


def test_a_position_among_sessions_comes_back_whole() -> None:
    newest_job = new_id()
    text = sessions.encode(newest_job, "my.session-1", "tenant")
    assert sessions.decode(text, "tenant") == (newest_job, "my.session-1")
    with pytest.raises(Problem):
        sessions.decode(text, "another")

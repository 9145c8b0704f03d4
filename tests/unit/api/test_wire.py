"""Cursors: opaque, bound to their list, and refused when touched."""

import string
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.error_catalogue import CATALOGUE
from api.core.errors import Problem, answer, pointer
from api.core.serialization import decode_cursor, encode_cursor


@given(st.uuids(), st.text())
def test_a_cursor_leads_back(position: UUID, scope: str) -> None:
    assert decode_cursor(encode_cursor(position, scope), scope) == position


@given(st.uuids(), st.integers(0, 31), st.sampled_from(string.ascii_letters + string.digits))
def test_a_changed_cursor_is_refused(position: UUID, place: int, letter: str) -> None:
    cursor = encode_cursor(position, "jobs")
    changed = cursor[:place] + letter + cursor[place + 1 :]
    if changed == cursor:
        return
    with pytest.raises(Problem) as refused:
        decode_cursor(changed, "jobs")
    assert refused.value.kind.code == "malformed_cursor"


@given(st.text())
def test_no_text_is_our_fault(text: str) -> None:
    with pytest.raises(Problem):
        decode_cursor(text, "jobs")


def test_a_cursor_of_another_list_is_refused() -> None:
    cursor = encode_cursor(UUID(int=1), "jobs", "tenant a")
    with pytest.raises(Problem):
        decode_cursor(cursor, "jobs", "tenant b")


def test_the_catalogue_is_sound() -> None:
    for code, kind in CATALOGUE.items():
        assert code == kind.code
        assert 400 <= kind.status < 600
        assert kind.title
        assert kind.doc.endswith(".")


def test_unavailable_says_when_to_come_back() -> None:
    for code, kind in CATALOGUE.items():
        if kind.status == 503:
            assert int(Problem(code).headers["Retry-After"]) > 0


def test_a_problem_can_say_anything() -> None:
    body = answer(Problem.invalid(pointer("a/b", "\ud800"), "x", "\ud800"), "/\udfff", "r").body
    assert bytes(body).isascii()

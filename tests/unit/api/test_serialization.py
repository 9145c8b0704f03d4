"""Cursors: opaque, bound to their list, and refused when touched."""

import asyncio
import errno
import string
from dataclasses import dataclass
from uuid import UUID

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from api.core.bodies import parse
from api.core.error_catalogue import CATALOGUE
from api.core.errors import Problem, answer, pointer
from api.core.middleware import RequestEnvelope
from api.core.serialization import AnswerModel, Page, PageRequest, decode_cursor, encode_cursor
from api.jobs.submission import JobSubmission


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


class Size(AnswerModel):
    width: int
    area: int
    metadata: dict[str, str]
    unit: str


@dataclass
class Row:
    width: int
    metadata: str = "of the table, as SQLAlchemy's rows have one"

    @property
    def unit(self) -> str:
        raise AssertionError("a deferred column, which is not to be read")

    @property
    def area(self) -> int:
        return self.width**2


def test_an_answer_takes_from_a_row_what_it_is_not_given() -> None:
    size = Size.of(Row(3), metadata={}, unit="px")
    assert size == Size(width=3, area=9, metadata={}, unit="px")


def test_an_answer_lacks_what_neither_the_row_nor_the_caller_has() -> None:
    with pytest.raises(ValidationError, match="area"):
        Size.of(object(), width=3, metadata={}, unit="px")


def test_a_page_ends_where_the_next_begins() -> None:
    rows = [Row(width) for width in range(3)]
    ids = {row.width: UUID(int=row.width) for row in rows}

    async def read(limit: int) -> Page[int]:
        return await PageRequest(limit).page(
            rows, lambda row: row.width, "rows", position=lambda row: ids[row.width]
        )

    assert asyncio.run(read(3)) == Page(data=[0, 1, 2], has_more=False, next_cursor=None)
    page = asyncio.run(read(2))
    assert (page.data, page.has_more) == ([0, 1], True)
    assert PageRequest(2, page.next_cursor).position("rows") == UUID(int=1)
    with pytest.raises(Problem):
        PageRequest(2, page.next_cursor).position("other rows")


# --- What a request is answered when something fails that no route has foreseen ---


def ask(error: Exception) -> httpx2.Response:
    """The answer of an application that fails so."""

    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    async def request() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=RequestEnvelope(failing))
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as http:
            return await http.post("/v1/uploads")

    return asyncio.run(request())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_bug_and_may_be_tried_again(number: int) -> None:
    answer = ask(OSError(number, "no room"))
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("a bug")])
def test_what_nobody_has_foreseen_is_a_bug(error: Exception) -> None:
    answer = ask(error)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "broken" not in answer.text
    assert "a bug" not in answer.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"prompt": "x", "num_image": 3}', "/num_image: There is no such field. Did you mean "
         "num_images?"),
        (b'{"prompt": "x", "hires": {"scal": 2}}', "/hires/scal: There is no such field. Did you "
         "mean scale?"),
        (b'{"prompt": "x", "controls": [{"name": "n", "image": "img_1", "strat": 1}]}',
         "/controls/0/strat: There is no such field. Did you mean start?"),
        (b'{"prompt": "x", "zzz": 1}', "/zzz: There is no such field."),
    ],
)  # fmt: skip
def test_a_misspelt_field_is_recognised(body: bytes, said: str) -> None:
    with pytest.raises(Problem) as refused:
        parse(JobSubmission, body)
    assert refused.value.detail == said

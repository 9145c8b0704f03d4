"""What a request is answered when something fails that no route has foreseen."""

import asyncio
import errno

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from api.core.middleware import RequestEnvelope


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

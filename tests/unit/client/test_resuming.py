"""For how long a stream that breaks is taken up again."""

from collections.abc import Callable

import httpx2
import pytest

import darkroom
from darkroom import Client
from tests.unit.client.test_retries import JOB

HOUR = 3600.0


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Breaking(httpx2.SyncByteStream):
    """A stream that tells some bytes, and breaks after a while in which nothing happened."""

    def __init__(self, data: bytes, quiet: Callable[[], None]) -> None:
        self._data, self._quiet = data, quiet

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield self._data
        self._quiet()
        raise httpx2.ReadError("broken")


def snapshot(state: str, sequence: int) -> bytes:
    job = httpx2.Response(200, json={**JOB, "state": state, "sequence": sequence}).content
    return b"event: job\nid: 1-0\ndata: " + job + b"\n\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("darkroom.resuming.time", made)
    for module in ("transport", "jobs", "batches"):
        monkeypatch.setattr(f"darkroom._sync.{module}.sleep", lambda _: None)
    return made


def test_a_stream_that_was_quiet_for_long_is_taken_up_again(clock: Clock) -> None:
    def wait_in_the_queue() -> None:
        clock.now += HOUR

    headers = {"content-type": "text/event-stream"}
    answers = [
        httpx2.Response(200, headers=headers, stream=Breaking(snapshot("queued", 0), quiet))
        for quiet in (wait_in_the_queue, wait_in_the_queue)
    ]
    answers.append(httpx2.Response(200, headers=headers, content=snapshot("succeeded", 1)))
    service = httpx2.MockTransport(lambda _: answers.pop(0))
    with Client("http://x", "drk_a_b", transport=service, patience=300) as client:
        states = [event.job.state for event in client.jobs.events("job_1")]  # type: ignore[union-attr]
    assert states == ["queued", "succeeded"]


def test_results_of_a_service_that_is_gone_end(clock: Clock) -> None:
    def gone(request: httpx2.Request) -> httpx2.Response:
        clock.now += 1.0
        raise httpx2.ConnectError("gone", request=request)

    service = httpx2.MockTransport(gone)
    with (
        Client("http://x", "drk_a_b", transport=service, patience=0.01) as client,
        pytest.raises(darkroom.NoAnswer),
    ):
        list(client.batches.results("batch_1"))

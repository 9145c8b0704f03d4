"""What is sent again, when, and what never is."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import httpx2
import pytest

import darkroom
from darkroom import AsyncClient, Client
from darkroom.retries import RetryPolicy, retry_after

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
JOB = {
    **{"id": "job_1", "kind": "txt2img", "state": "queued", "sequence": 0, "model": "m"},
    **{"session_id": "default", "prompt": "a cat", "seeds": [1], "width": 64, "height": 64},
    **{"steps": 4, "guidance_scale": 4.0, "scheduler": "ddim"},
    "created_at": "2026-01-31T12:00:00Z",
}
Answer = httpx2.Response | type[httpx2.TransportError]


class Service:
    """Answers as told, in turn, and remembers what was asked and for how long was slept."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, httpx2.Response):
            return answer
        raise answer("on purpose", request=request)

    async def answer_async(self, request: httpx2.Request) -> httpx2.Response:
        return self(request)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def sleep_async(self, seconds: float) -> None:
        self.pauses.append(seconds)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[Service], Client]:
    """A client of such a service, for which pauses take no time."""

    def make(service: Service) -> Client:
        for module in ("transport", "jobs", "batches"):
            monkeypatch.setattr(f"darkroom._sync.{module}.sleep", service.sleep)
        return Client("http://x", "drk_a_b", transport=httpx2.MockTransport(service))

    return make


def refusal(status: int, code: str = "", **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json={"code": code}, headers=named)


def accepted() -> httpx2.Response:
    return httpx2.Response(202, json=JOB)


def test_one_idempotency_key_goes_with_every_try(connect: Callable[[Service], Client]) -> None:
    service = Service(
        httpx2.ConnectError, httpx2.ReadError, refusal(503, Retry_After="2"), accepted()
    )
    handle = connect(service).jobs.submit("a cat")
    assert handle.id == "job_1"
    keys = {request.headers["idempotency-key"] for request in service.requests}
    assert len(service.requests) == 4
    assert len(keys) == 1
    assert service.pauses[0] < service.pauses[1] < 1
    assert 2 <= service.pauses[2] < 2.5
    assert len({request.content for request in service.requests}) == 1


def test_another_wish_has_another_key(connect: Callable[[Service], Client]) -> None:
    service = Service(accepted(), accepted())
    client = connect(service)
    client.jobs.submit("a cat")
    client.jobs.submit("a cat")
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 2


def test_the_asynchronous_client_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(httpx2.ReadTimeout, refusal(429, Retry_After="3"), accepted())
    monkeypatch.setattr("darkroom._async.transport.sleep", service.sleep_async)

    async def submit() -> str:
        answers = httpx2.MockTransport(service.answer_async)
        async with AsyncClient("http://x", "drk_a_b", transport=answers) as client:
            return (await client.jobs.submit("a cat")).id

    assert asyncio.run(submit()) == "job_1"
    assert len({request.headers["idempotency-key"] for request in service.requests}) == 1
    assert 3 <= service.pauses[1] < 3.5


def test_it_gives_up_after_some_tries(connect: Callable[[Service], Client]) -> None:
    service = Service(*[httpx2.ConnectTimeout] * 9)
    with pytest.raises(darkroom.APITimeoutError):
        connect(service).jobs.get("job_1")
    assert len(service.requests) == 5
    service = Service(*[refusal(503, "overloaded") for _ in range(9)])
    with pytest.raises(darkroom.Overloaded):
        connect(service).jobs.get("job_1")
    assert len(service.requests) == 5


@pytest.mark.parametrize("failure", [httpx2.ReadError, httpx2.ReadTimeout, refusal(503)])
def test_what_may_have_been_done_is_not_done_twice(
    connect: Callable[[Service], Client], failure: Answer
) -> None:
    service = Service(failure)
    with pytest.raises((darkroom.APIConnectionError, darkroom.ServiceUnavailableError)):
        connect(service).keys.create("a key", scopes=["jobs"])
    assert len(service.requests) == 1


@pytest.mark.parametrize("failure", [httpx2.ConnectError, refusal(429)])
def test_what_cannot_have_been_done_is_tried_again(
    connect: Callable[[Service], Client], failure: Answer
) -> None:
    service = Service(failure, refusal(403, "insufficient_scope"))
    with pytest.raises(darkroom.InsufficientScope):
        connect(service).keys.create("a key", scopes=["jobs"])
    assert len(service.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_what_will_not_pass_is_asked_once(
    connect: Callable[[Service], Client], status: int
) -> None:
    service = Service(refusal(status))
    with pytest.raises(darkroom.APIStatusError):
        connect(service).jobs.submit("a cat")
    assert len(service.requests) == 1


def test_a_long_wait_is_the_callers_to_decide(connect: Callable[[Service], Client]) -> None:
    service = Service(refusal(429, "gpu_seconds_exceeded", Retry_After="7200"))
    with pytest.raises(darkroom.GpuSecondsExceeded) as refused:
        connect(service).jobs.submit("a cat")
    assert refused.value.retry_after == 7200
    assert service.pauses == []


def test_waiting_outlasts_any_number_of_failures(connect: Callable[[Service], Client]) -> None:
    done = httpx2.Response(200, json={**JOB, "state": "succeeded"})
    service = Service(*[httpx2.ConnectError] * 30, done)
    assert connect(service).jobs.wait("job_1").state == "succeeded"
    assert max(service.pauses) <= 8


def test_the_retry_timeout_ends_retries() -> None:
    patient = RetryPolicy(retries=0, retry_timeout=10.0)
    failure = httpx2.ConnectError("no")
    assert patient.after_failure(failure, repeatable=True, attempt=99, elapsed=9.0)
    assert patient.after_failure(failure, repeatable=True, attempt=1, elapsed=10.0) is None
    assert patient.after_answer(503, 30.0, repeatable=True, attempt=0, elapsed=1.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("Sat, 31 Jan 2026 12:00:30 GMT", 30.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
        ("-1", None),
        ("1e9", None),
    ],
)
def test_retry_after_has_two_forms(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


# --- For how long a stream that breaks is taken up again ---


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
    monkeypatch.setattr("darkroom.retries.time", made)
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
    with Client("http://x", "drk_a_b", transport=service, retry_timeout=300) as client:
        states = [event.job.state for event in client.jobs.events("job_1")]  # type: ignore[union-attr]
    assert states == ["queued", "succeeded"]


def test_results_of_a_service_that_is_gone_end(clock: Clock) -> None:
    def gone(request: httpx2.Request) -> httpx2.Response:
        clock.now += 1.0
        raise httpx2.ConnectError("gone", request=request)

    service = httpx2.MockTransport(gone)
    with (
        Client("http://x", "drk_a_b", transport=service, retry_timeout=0.01) as client,
        pytest.raises(darkroom.APIConnectionError),
    ):
        list(client.batches.results("batch_1"))

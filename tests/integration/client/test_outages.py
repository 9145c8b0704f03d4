"""What the client does while connections break, answers get lost and the API restarts."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event

import httpx2
import pytest
from msgspec.structs import replace

import darkroom
from darkroom import AsyncClient, Canceled, Client, JobChanged, ProgressMade
from shared.core.settings import Settings
from tests.integration.api.relay import Mode, Relay
from tests.integration.client.test_jobs import NOBODY
from tests.processes import PATIENT, ApiProcess, WorkerProcess, free_port, wait_until


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pauses between attempts are short; they grow as ever."""
    monkeypatch.setattr("darkroom.retries._FIRST_PAUSE", 0.02)
    monkeypatch.setattr("darkroom.retries._FIRST_RECONNECT", 0.02)


@pytest.fixture(scope="module")
def frail_api(
    settings: Settings,
    environment: dict[str, str],
    key: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """An API process to be killed, over the same database as the others."""
    log = tmp_path_factory.mktemp("frail") / "api.log"
    with ApiProcess(environment, free_port(), key, log, factory=PATIENT) as process:
        yield process


@pytest.fixture
def relay(api: ApiProcess) -> Iterator[Relay]:
    """In front of the API."""
    made = Relay(api.url)
    yield made
    made.close()


class LosesAnswers(httpx2.BaseTransport):
    """Real connections, on which the first answers get lost after the service has acted."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self._real = httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._real.handle_request(request)
        response.read()
        if self.lost:
            self.lost -= 1
            raise httpx2.ReadError("lost", request=request)
        return response

    def close(self) -> None:
        self._real.close()


def test_a_lost_answer_makes_no_second_job(api: ApiProcess, key: str) -> None:
    with Client(api.url, key, transport=LosesAnswers(2)) as client:
        handle = client.jobs.submit("once", model=NOBODY, session_id="lost-answers")
        assert [job.id for job in client.jobs.list(session_id="lost-answers")] == [handle.id]
        handle.cancel()


def test_a_lost_answer_makes_no_second_batch(api: ApiProcess, key: str) -> None:
    with Client(api.url, key, transport=LosesAnswers(1)) as client:
        before = {batch.id for batch in client.batches.list()}
        batch = client.batches.submit(["once"], defaults={"model": NOBODY})
        assert {each.id for each in client.batches.list()} - before == {batch.id}
        client.batches.cancel(batch)


def test_waiting_and_events_outlast_a_restart(
    api: ApiProcess, frail_api: ApiProcess, key: str
) -> None:
    opened = Event()

    def follow(client: Client, job_id: str) -> list[darkroom.JobEvent]:
        events = []
        for event in client.jobs.events(job_id):
            events.append(event)
            opened.set()
        return events

    with (
        Client(frail_api.url, key) as client,
        Client(api.url, key) as elsewhere,
        ThreadPoolExecutor(2) as threads,
    ):
        handle = client.jobs.submit("a job for nobody", model=NOBODY)
        waiting = threads.submit(handle.wait)
        following = threads.submit(follow, client, handle.id)
        assert opened.wait(30)
        frail_api.kill()
        elsewhere.jobs.cancel(handle.id)
        frail_api.start()
        assert waiting.result(60).status == Canceled()
        events = following.result(60)
    states = [event.job.state for event in events if isinstance(event, JobChanged)]
    assert states == ["queued", "canceled"]


def test_events_go_on_behind_the_last_one(
    relay: Relay, key: str, generate_worker: WorkerProcess
) -> None:
    with Client(relay.url, key) as behind, ExitStack() as beginning:
        beginning.enter_context(generate_worker.frozen())  # lest the end be the first event
        handle = behind.jobs.submit("a long one", num_images=16, steps=100)
        ids, cuts = [], 0
        for event in handle.events():
            beginning.close()
            ids.append(event.id)
            if isinstance(event, ProgressMade) and cuts < 2:
                cuts += 1
                with relay.set_to(Mode.REFUSE):
                    pass
        assert handle.job.state == "succeeded"
    assert cuts == 2
    named = [tuple(map(int, each.partition(".")[0].split("-"))) for each in ids if each]
    assert named == sorted(named)
    assert len(set(ids)) == len(ids), "an event came twice"


def test_events_of_an_end_that_was_seen_are_none(client: Client) -> None:
    handle = client.jobs.submit("a short one")
    *_, last = handle.events()
    assert list(handle.events(after=last.id)) in ([], [last])


def test_the_asynchronous_client_outlasts_a_cut(client: Client, relay: Relay, key: str) -> None:
    async def follow() -> list[str]:
        async with AsyncClient(relay.url, key) as behind:
            handle = await behind.jobs.submit("a job for nobody", model=NOBODY)
            states = []
            async for event in handle.events():
                assert isinstance(event, JobChanged)
                states.append(event.job.state)
                if event.job.state == "queued":
                    with relay.set_to(Mode.REFUSE):
                        client.jobs.cancel(handle.id)
            return states

    assert asyncio.run(follow()) == ["queued", "canceled"]


def test_a_service_that_stays_away_is_no_wait_for_ever(key: str) -> None:
    with Client(f"http://127.0.0.1:{free_port()}", key, retries=1, retry_timeout=0.3) as client:
        with pytest.raises(darkroom.APIConnectionError):
            client.jobs.submit("a cat")
        with pytest.raises(darkroom.APIConnectionError):
            client.jobs.wait("job_1")
        with pytest.raises(darkroom.APIConnectionError):
            next(client.jobs.events("job_1"))


def test_an_expired_url_is_asked_for_anew(client: Client) -> None:
    [image] = client.generate("a boat")
    whole = image.bytes()
    expired = replace(image, url=image.url.replace("X-Amz-Date=2", "X-Amz-Date=1"))
    assert expired.url != image.url
    assert client.images.download(expired) == whole
    unreachable = replace(image, url=f"http://127.0.0.1:{free_port()}/x")
    assert client.images.download(unreachable) == whole
    assert client.images.download(image, through_api=True) == whole
    with pytest.raises(darkroom.ChecksumMismatch):
        client.images.download(replace(image, sha256="0" * 64))


def test_what_is_canceled_elsewhere_ends_the_wait(client: Client) -> None:
    handle = client.jobs.submit("a job for nobody", model=NOBODY)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(handle.result, 60)
        wait_until(waiting.running, what="the waiting thread")
        client.jobs.cancel(handle.id)
        with pytest.raises(darkroom.JobCanceled):
            waiting.result(30)

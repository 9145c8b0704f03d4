"""Event streams: a snapshot, what happens, the end; resumed, and without Redis's help."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import redis
import uvloop
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.core.principal import Principal
from api.jobs import followers, sse
from api.jobs.followers import Following
from api.jobs.redis_events import START
from api.jobs.sse import open_stream
from shared.core.broker import events_key
from shared.core.redis_clients import open_async_redis
from shared.core.settings import Settings
from tests.integration.api.conftest import WithoutRedis, uuid_of
from tests.integration.api.test_bad_input import check_problem
from tests.integration.api.test_polling import claim, fail, succeed, tell
from tests.patient_api import be_patient
from tests.processes import ApiProcess, wait_until

Submit = Callable[..., dict[str, Any]]
Database = sessionmaker[Session]


@dataclass
class Event:
    """One server-sent event."""

    type: str
    data: dict[str, Any]
    id: str | None


def parse(lines: Iterator[str]) -> Iterator[Event]:
    """Events as a browser would dispatch them."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}


@contextmanager
def following(
    http: httpx2.Client, job: dict[str, Any], last: str | None = None, query: str = ""
) -> Iterator[Iterator[Event]]:
    headers = {} if last is None else {"Last-Event-ID": last}
    timeout = httpx2.Timeout(20)
    url = job["links"]["events"] + query
    with http.stream("GET", url, headers=headers, timeout=timeout) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parse(answer.iter_lines())


@pytest.fixture
def story(
    submit: Submit, database: Database, redis_client: "redis.Redis"
) -> tuple[dict[str, Any], list[str]]:
    """A finished job and the ids of its events: running, 2 steps, a preview, an image, the end.

    The last one carries the job's sequence, too: who has it has seen the end.
    """
    job = submit()
    claim(database, job)
    ids = [tell(redis_client, job, "job", state="running", sequence=1)]
    for step in (4, 8):
        at = {"image_index": 0, "step": step, "steps": 8, "fraction": step / 8}
        ids.append(tell(redis_client, job, "progress", **at))
    preview = {"image_index": 0, "content_type": "image/webp", "data": "AAAA"}
    ids.append(tell(redis_client, job, "preview", **preview))
    ids.append(tell(redis_client, job, "image", id="img_x", index=0))
    succeed(database, job)
    ids.append(tell(redis_client, job, "job", state="succeeded", sequence=2) + ".2")
    return job, ids


def test_a_finished_job_is_one_snapshot(
    http: httpx2.Client, story: tuple[dict[str, Any], list[str]]
) -> None:
    job, ids = story
    with following(http, job) as events:
        [event] = events
    assert (event.type, event.id) == ("job", ids[-1])
    assert event.data == http.get(job["links"]["self"]).json()


def test_a_reader_goes_on_after_the_last_event_it_has(
    http: httpx2.Client, story: tuple[dict[str, Any], list[str]]
) -> None:
    job, ids = story
    for position in range(len(ids) - 1):
        with following(http, job, ids[position]) as events:
            seen = list(events)
        assert [event.id for event in seen] == ids[position + 1 :]
        assert seen[-1].data["state"] == "succeeded"
    with following(http, job, query=f"?last_event_id={ids[1]}") as events:
        assert [event.id for event in events] == ids[2:]


def test_previews_can_be_left_out(
    http: httpx2.Client, story: tuple[dict[str, Any], list[str]]
) -> None:
    job, ids = story
    with following(http, job, ids[0], "?previews=0") as events:
        assert [event.type for event in events] == ["progress", "progress", "image", "job"]


@pytest.mark.parametrize(
    "wrong", ["", "abc", "1-", "-1", "1-0", "9" * 30 + "-0", "99999999999999-0"]
)
def test_an_id_that_cannot_be_resumed_from_gets_the_snapshot(
    http: httpx2.Client, story: tuple[dict[str, Any], list[str]], wrong: str
) -> None:
    with following(http, story[0], wrong) as events:
        assert [(event.type, event.data["state"]) for event in events] == [("job", "succeeded")]


def test_a_reader_that_has_all_but_no_end_gets_the_end(
    http: httpx2.Client, story: tuple[dict[str, Any], list[str]]
) -> None:
    job, ids = story
    with following(http, job, ids[-1].removesuffix(".2")) as events:
        assert [event.data["state"] for event in events] == ["succeeded"]


def test_a_reader_that_has_the_end_is_told_to_stay_away(
    http: httpx2.Client,
    story: tuple[dict[str, Any], list[str]],
    redis_client: "redis.Redis",
) -> None:
    """A browser's EventSource comes back for ever unless it gets a 204."""
    job, ids = story
    last = {"Last-Event-ID": ids[-1]}
    assert http.get(job["links"]["events"], headers=last).status_code == 204
    redis_client.delete(events_key(uuid_of(job)))
    assert http.get(job["links"]["events"], headers=last).status_code == 204
    with following(http, job) as events:
        [again] = events
    last = {"Last-Event-ID": str(again.id)}
    assert http.get(job["links"]["events"], headers=last).status_code == 204


def test_an_end_that_was_undone_is_followed_again(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    claim(database, job)
    fail(database, job)
    with following(http, job) as events:
        [end] = events
    http.post(f"{job['links']['self']}/retry")
    with following(http, job, end.id) as events:
        assert next(events).data["state"] == "queued"


def test_trimmed_entries_are_made_up_for_by_the_snapshot(
    http: httpx2.Client,
    story: tuple[dict[str, Any], list[str]],
    redis_client: "redis.Redis",
) -> None:
    job, ids = story
    redis_client.xtrim(events_key(uuid_of(job)), minid=ids[3], approximate=False)
    with following(http, job, ids[1]) as events:
        assert [event.type for event in events] == ["job"]


def test_events_come_as_they_happen(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit()
    with following(http, job) as events:
        assert next(events).data["state"] == "queued"
        claim(database, job)
        tell(redis_client, job, "job", state="running", sequence=1)
        assert next(events).data["state"] == "running"
        at = {"image_index": 0, "step": 1, "steps": 8, "fraction": 0.125}
        step = tell(redis_client, job, "progress", **at)
        event = next(events)
        assert (event.type, event.data, event.id) == ("progress", at, step)
        succeed(database, job)
        tell(redis_client, job, "job", state="succeeded", sequence=2)
        assert [event.data["state"] for event in events] == ["succeeded"]


def test_what_a_snapshot_has_told_is_not_told_again(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    """The look at the database may come before the worker's event."""
    job = submit()
    with following(http, job) as events:
        next(events)
        claim(database, job)
        assert next(events).data["state"] == "running"
        tell(redis_client, job, "job", state="running", sequence=1)
        tell(redis_client, job, "progress", image_index=0, step=1, steps=8, fraction=0.125)
        assert next(events).type == "progress"


@pytest.mark.parametrize("read_during", [None, "edges", "read_job"])
def test_what_was_missed_comes_before_an_end_that_the_database_tells(
    read_during: str | None,
    settings: Settings,
    story: tuple[dict[str, Any], list[str]],
    row_of: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The look at the database may come before the first read of Redis, or in its midst."""
    be_patient(monkeypatch.setattr)
    job, ids = story
    row = row_of(job["id"])
    principal = Principal(row.tenant_id, row.api_key_id, frozenset({"jobs"}))

    async def resume() -> list[str]:
        async with open_resources(settings) as held:
            stream = await open_stream(
                held, principal, job["id"], ids[1], with_previews=True, seconds=60
            )
            assert stream is not None
            following = held.get(Following)
            if read_during is not None:
                of = sse if read_during == "edges" else following
                wrapped = _after(following._read_once, getattr(of, read_during))
                monkeypatch.setattr(of, read_during, wrapped)
            first = asyncio.create_task(_next(stream))
            await asyncio.sleep(0)  # it follows
            await following._poll(held)
            if read_during is not None:
                await first
            async with following.running(held):
                pieces = [await first, *[piece async for piece in stream]]
        return [event.type for event in parse(iter(b"".join(pieces).decode().splitlines()))]

    assert asyncio.run(resume()) == ["progress", "preview", "image", "job"]


def _after(
    once: Callable[[], Awaitable[None]], then: Callable[..., Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """The second function, whose first call comes after one of the other."""
    calls = [once]

    async def both(*args: Any) -> Any:
        while calls:
            await calls.pop()()
        return await then(*args)

    return both


def test_nothing_ends_the_reading_of_events(
    settings: Settings, submit: Submit, redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    be_patient(monkeypatch.setattr)
    monkeypatch.setattr(followers, "_RETRY_SECONDS", 0.05)
    job = submit()

    async def follow() -> list[str]:
        async with open_resources(settings) as held:
            following = held.get(Following)
            read = following._redis.xread
            failures = [RuntimeError("as uvloop's about a transport"), KeyError("anything")]

            async def fail_at_first(*args: Any, **options: Any) -> Any:
                if failures:
                    raise failures.pop()
                return await read(*args, **options)

            monkeypatch.setattr(following._redis, "xread", fail_at_first)
            async with following.running(held):
                with following.follow(uuid_of(job), "key", START, 0) as follower:
                    tell(redis_client, job, "progress", image_index=0, step=1, steps=8, fraction=0)
                    while not (events := following.take_events(follower)):
                        assert await follower.news(60)
        return [event.kind for event in events]

    assert asyncio.run(follow()) == ["progress"]


def test_a_connection_that_has_just_closed_is_an_outage(
    settings: Settings, redis_client: "redis.Redis"
) -> None:
    """uvloop, the API's event loop, has an error of its own for it."""

    async def send() -> None:
        async with open_async_redis(settings) as client:
            connection = await client.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0.01)
            with pytest.raises(redis.ConnectionError):
                await connection.send_command("PING")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send())


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    return await anext(stream)


def test_a_cancellation_is_told(http: httpx2.Client, submit: Submit) -> None:
    job = submit()
    with following(http, job) as events:
        next(events)
        http.post(job["links"]["cancel"])
        assert [event.data["state"] for event in events] == ["canceled"]


def make_batch(http: httpx2.Client) -> dict[str, Any]:
    """A batch of one job that nobody will run."""
    answer = http.post("/v1/batches", json={"items": ["a blue square"]})
    assert answer.status_code == 202, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


def test_the_cancellation_of_its_batch_is_told(http: httpx2.Client) -> None:
    """No event is written for each of 50,000 jobs: a stream finds it in the database."""
    batch = make_batch(http)
    [job] = http.get(f"/v1/batches/{batch['id']}/items").json()["data"]
    with following(http, job) as events:
        assert next(events).data["state"] == "queued"
        assert http.post(f"/v1/batches/{batch['id']}/cancel").status_code == 200
        assert [event.data["state"] for event in events] == ["canceled"]


@pytest.mark.long
def test_an_end_that_redis_forgot_is_found_in_the_database(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit()
    with following(http, job) as events:
        next(events)
        claim(database, job)
        succeed(database, job)
        redis_client.delete(events_key(uuid_of(job)))
        assert list(events)[-1].data["state"] == "succeeded"


def test_a_stream_outlives_redis(
    http: httpx2.Client, submit: Submit, database: Database, without_redis: WithoutRedis
) -> None:
    job = submit()
    with following(http, job) as events:
        assert next(events).data["state"] == "queued"
        with without_redis():
            claim(database, job)
            assert next(events).data["state"] == "running"
            succeed(database, job)
            assert [event.data["state"] for event in events] == ["succeeded"]


def test_a_stream_reads_redis_again_when_it_is_back(
    http: httpx2.Client,
    submit: Submit,
    database: Database,
    without_redis: WithoutRedis,
    redis_client: "redis.Redis",
) -> None:
    job = submit()
    with following(http, job) as events:
        next(events)
        with without_redis():
            claim(database, job)
            assert next(events).data["state"] == "running"
        tell(redis_client, job, "progress", image_index=0, step=1, steps=8, fraction=0.125)
        assert next(events).type == "progress"
        succeed(database, job)
        tell(redis_client, job, "job", state="succeeded", sequence=2)
        assert [event.data["state"] for event in events] == ["succeeded"]


def test_previews_can_be_asked_for_before_the_job_runs(
    http: httpx2.Client, submit: Submit, row_of: Callable[[str], Any]
) -> None:
    job = submit()
    with following(http, job, query="?previews=1") as events:
        next(events)
        assert row_of(job["id"]).previews


@pytest.mark.long
def test_a_key_may_not_hold_every_stream(
    lone_api: ApiProcess, fresh: httpx2.Client, submit: Submit, settings: Settings
) -> None:
    at_most = settings.max_streams_per_key
    job = submit(fresh)
    key = fresh.headers["authorization"].removeprefix("Bearer ")
    limits = httpx2.Limits(max_connections=at_most + 1)
    headers = {"Authorization": f"Bearer {key}"}
    with ExitStack() as stack:
        many = stack.enter_context(
            httpx2.Client(headers=headers, limits=limits, timeout=70, trust_env=False)
        )
        results = f"/v1/batches/{make_batch(fresh)['id']}/results"
        results = str(fresh.base_url.join(results))
        following_results = stack.enter_context(many.stream("GET", results))
        assert following_results.status_code == 200
        streams = [stack.enter_context(following(many, job)) for _ in range(at_most - 1)]
        assert {next(events).type for events in streams} == {"job"}
        for one_too_many in (job["links"]["events"], results):
            refused = many.get(one_too_many)
            check_problem(refused, 429, "too_many_streams")
            assert int(refused.headers["retry-after"]) > 0
        assert many.get(results, params={"follow": "false"}).status_code == 200
    wait_until(lambda: _can_follow(fresh, job), 15, "a slot to become free")


def _can_follow(http: httpx2.Client, job: dict[str, Any]) -> bool:
    with http.stream("GET", job["links"]["events"]) as answer:
        return answer.status_code == 200


def test_many_readers_see_the_same(
    http: httpx2.Client,
    submit: Submit,
    lone_api: ApiProcess,
    redis_client: "redis.Redis",
    database: Database,
) -> None:
    job = submit()
    seen: list[list[str]] = []
    ready = threading.Barrier(6)

    def read() -> None:
        with lone_api.client(lone_api.key) as client, following(client, job) as events:
            next(events)
            ready.wait(60)
            first = [next(events).type, next(events).type]
            ready.wait(60)  # an end may overtake the progress before it
            seen.append([*first, *(event.type for event in events)])

    readers = [threading.Thread(target=read) for _ in range(5)]
    for reader in readers:
        reader.start()
    ready.wait(60)
    claim(database, job)
    tell(redis_client, job, "job", state="running", sequence=1)
    tell(redis_client, job, "progress", image_index=0, step=1, steps=8, fraction=0.125)
    ready.wait(60)
    succeed(database, job)
    tell(redis_client, job, "job", state="succeeded", sequence=2)
    for reader in readers:
        reader.join(60)
    assert seen == [["job", "progress", "job"]] * 5

"""Waiting for jobs: through outages, for many keys at once, and no longer than a key lives."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import batch_key, events_key
from shared.core.ids import decode_id, encode_id
from shared.core.quotas import Quotas
from shared.core.tenants import Tenant
from tests.integration.api.conftest import WAITS_PER_KEY, Relays, WithoutRedis, start_alone, uuid_of
from tests.integration.api.relay import Mode
from tests.integration.api.test_bad_input import check_problem
from tests.integration.api.test_events import following
from tests.integration.api.test_polling import claim, succeed, tell
from tests.integration.search.gallery import any_vector, insert_image
from tests.processes import PATIENT, ApiProcess, slowness, wait_until

Submit = Callable[..., dict[str, Any]]
Database = sessionmaker[Session]
JOB = {"prompt": "a red circle"}
RECEIPT = {
    "kind": "txt2img",
    "model": {"name": "paper", "content_hash": "0"},
    "scheduler": {"name": "euler"},
    "prompt": "a boat",
    "negative_prompt": None,
    "seed": 7,
    "width": 128,
    "height": 64,
    "steps": 4,
    "guidance_scale": 5.0,
    "strength": None,
    "output_format": "png",
    "batch_size": 1,
}


@contextmanager
def in_background(ask: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run it beside the block; after the block its result is in the list."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(ask()))
    thread.start()
    try:
        yield result
    finally:
        thread.join(90)


def newest_job(
    client: httpx2.Client, besides: set[str], answers: Sequence[httpx2.Response] = ()
) -> dict[str, Any]:
    """The job that another request of this tenant has just submitted."""

    def find() -> dict[str, Any] | None:
        assert not answers, answers[0].text
        answer = client.get("/v1/jobs", params={"limit": 5})
        if answer.status_code == 503:  # the outage of the test before is not over in every pool
            return None
        found = answer.json()["data"]
        new = [job for job in found if job["id"] not in besides]
        return new[0] if new else None

    job: dict[str, Any] = wait_until(find, 20, "the submitted job")
    return job


@pytest.mark.parametrize("mode", [Mode.REFUSE, pytest.param(Mode.HANG, marks=pytest.mark.long)])
def test_an_accepted_job_is_answered_202_though_postgres_fails(
    fresh: httpx2.Client, relays: Relays, redis_client: "redis.Redis", mode: Mode
) -> None:
    seconds = round(2 + slowness())  # in which the outage has to begin
    headers = {"Prefer": f"wait={seconds}"}
    wait_until(lambda: not follows_a_job(redis_client), 30, "the end of earlier waits")
    with in_background(lambda: fresh.post("/v1/jobs", json=JOB, headers=headers)) as answers:
        job = newest_job(fresh, set())
        # The row is seen before the request has the commit's answer.
        wait_until(lambda: follows_a_job(redis_client), 30, "a wait that has begun")
        with relays.postgres.set_to(mode):
            wait_until(lambda: answers, 30, "an answer")
    [answer] = answers
    assert answer.status_code == 202, answer.text
    assert answer.json()["id"] == job["id"]
    assert answer.headers["location"] == job["links"]["self"]


def test_a_wait_outlasts_an_outage(
    fresh: httpx2.Client, relays: Relays, database: Database, redis_client: "redis.Redis"
) -> None:
    """The event of the end comes while Postgres cannot say what the job is."""
    headers = {"Prefer": "wait=40"}
    # The outage of the test before may not be over in every pool.
    wait_until(lambda: fresh.post("/v1/jobs?dry_run=true", json=JOB).is_success, 60, "its end")
    wait_until(lambda: fresh.get("/v1/jobs").is_success, 60, "its end")
    wait_until(lambda: not follows_a_job(redis_client), 30, "the end of earlier waits")
    with in_background(lambda: fresh.post("/v1/jobs", json=JOB, headers=headers)) as answers:
        job = newest_job(fresh, set())
        # The row is seen before the request has the commit's answer.
        wait_until(lambda: follows_a_job(redis_client), 30, "a wait that has begun")
        claim(database, job)
        with relays.postgres.set_to(Mode.REFUSE):
            succeed(database, job)
            tell(redis_client, job, "job", state="succeeded", sequence=2)
            check_problem(fresh.get("/v1/jobs"), 503, "database_unavailable")
    [answer] = answers
    assert (answer.status_code, answer.json()["state"]) == (202, "succeeded")


def follows_a_job(redis_client: "redis.Redis") -> bool:
    """Whether some process reads the events of jobs: it does while somebody waits for one."""
    # An idle connection shows its last command, too; `b` is one that blocks.
    return any(
        client["cmd"] == "xread" and "b" in client["flags"] for client in redis_client.client_list()
    )


@pytest.mark.long
def test_a_get_that_waits_outlasts_an_outage(
    fresh: httpx2.Client,
    relays: Relays,
    submit: Submit,
    database: Database,
    redis_client: "redis.Redis",
) -> None:
    job = submit(fresh)
    wait_until(lambda: not follows_a_job(redis_client), 30, "the end of earlier waits")
    headers = {"Prefer": "wait=40"}
    with in_background(lambda: fresh.get(job["links"]["self"], headers=headers)) as answers:
        wait_until(lambda: follows_a_job(redis_client), 30, "a wait that has begun")
        claim(database, job)
        with relays.postgres.set_to(Mode.REFUSE):
            refused_since = time.monotonic()

            def has_outlasted_several_looks() -> bool:
                check_problem(fresh.get("/v1/jobs"), 503, "database_unavailable")
                return time.monotonic() - refused_since > 4  # seconds

            wait_until(has_outlasted_several_looks, 30, "an outage of some length")
            assert not answers, answers[0].text
        succeed(database, job)
    [answer] = answers
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


@pytest.mark.long
def test_an_image_that_is_being_made_again_is_answered_202_though_postgres_fails(
    http: httpx2.Client, relays: Relays, database: Database, redis_client: "redis.Redis"
) -> None:
    with database.begin() as session:
        tenant = session.scalars(select(Tenant.id).where(Tenant.name == "lone")).one()
        image = insert_image(session, tenant, "a boat", any_vector(1), receipt=RECEIPT)
    recent = wait_until(
        # The test before this one may have left the API with broken connections.
        lambda: http.get("/v1/jobs", params={"limit": 5}).json().get("data"),
        30,
        "a database",
    )
    known = {job["id"] for job in recent}
    path = f"/v1/images/{encode_id('img', image)}/reproduce"
    headers = {"Prefer": "wait=15"}
    wait_until(lambda: not follows_a_job(redis_client), 30, "the end of earlier waits")
    with in_background(lambda: http.post(path, headers=headers)) as answers:
        job = newest_job(http, known, answers)
        wait_until(lambda: follows_a_job(redis_client), 30, "a wait that has begun")
        with relays.postgres.set_to(Mode.REFUSE):
            wait_until(lambda: answers, 30, "an answer")
    [answer] = answers
    assert answer.status_code == 202, answer.text
    assert answer.json()["job"]["id"] == job["id"]
    assert job["id"] in answer.headers["location"]


def test_a_wait_ends_without_redis(
    fresh: httpx2.Client, without_redis: WithoutRedis, submit: Submit, database: Database
) -> None:
    job = submit(fresh)
    headers = {"Prefer": "wait=40"}
    with without_redis():
        with in_background(lambda: fresh.get(job["links"]["self"], headers=headers)) as answers:
            claim(database, job)
            succeed(database, job)
        assert answers[0].json()["state"] == "succeeded"


def test_a_key_of_events_that_is_no_stream_holds_up_no_other_job(
    fresh: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    broken, sound = submit(fresh), submit(fresh)
    key = events_key(uuid_of(broken))
    redis_client.delete(key)
    redis_client.set(key, "no stream")
    with following(fresh, broken) as lost, following(fresh, sound) as heard:
        assert next(lost).data["state"] == next(heard).data["state"] == "queued"
        tell(redis_client, sound, "progress", image_index=0, step=1, steps=8, fraction=0.125)
        assert next(heard).type == "progress"
        claim(database, broken)
        succeed(database, broken)
        assert [event.data["state"] for event in lost][-1] == "succeeded"
    redis_client.delete(key)


@pytest.mark.long
def test_a_wait_and_a_stream_end_with_their_key(
    http: httpx2.Client, lone_api: ApiProcess, submit: Submit
) -> None:
    made = http.post("/v1/keys", json={"name": "brief", "scopes": ["jobs"]}).json()
    job = submit()
    known = {job["id"] for job in http.get("/v1/jobs", params={"limit": 5}).json()["data"]}
    headers = {"Prefer": "wait=60"}
    started = time.monotonic()
    with (
        lone_api.client(made["key"]) as brief,
        following(brief, job) as events,
        in_background(lambda: brief.get(job["links"]["self"], headers=headers)) as got,
        in_background(lambda: brief.post("/v1/jobs", json=JOB, headers=headers)) as posted,
    ):
        assert next(events).data["state"] == "queued"
        newest_job(http, known)
        assert http.delete(f"/v1/keys/{made['id']}").status_code == 204
        assert list(events) == []
        wait_until(lambda: got and posted, 40, "the answers")
    assert time.monotonic() - started < 50  # seconds of the 60 that were asked for
    check_problem(got[0], 401, "unauthenticated")
    assert (posted[0].status_code, posted[0].json()["state"]) == (202, "queued")


async def ask_many(
    client: httpx2.Client, count: int, path: str, answers: list[httpx2.Response]
) -> None:
    """So many waits of one key at once, until their job has ended; the answers as they come."""
    headers = {**client.headers, "Prefer": "wait=60"}
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(
        headers=headers, limits=limits, timeout=90, trust_env=False
    ) as many:

        async def ask() -> None:
            answers.append(await many.get(path))

        await asyncio.gather(*(ask() for _ in range(count)))


@pytest.mark.long
def test_a_key_may_not_hold_every_wait(
    fresh: httpx2.Client, stranger: httpx2.Client, submit: Submit
) -> None:
    at_most = WAITS_PER_KEY
    job, other = submit(fresh), submit(stranger)
    link = job["links"]["self"]
    answers: list[httpx2.Response] = []
    with in_background(lambda: asyncio.run(ask_many(fresh, at_most + 20, link, answers))):
        wait_until(lambda: len(answers) == 20, 30, "those beyond the limit to be refused")
        for refused in answers:
            check_problem(refused, 429, "too_many_waits")
            assert int(refused.headers["retry-after"]) > 0
        # What does not wait, and another tenant's waits, go on; a refused submission is none.
        brief = {"Prefer": "wait=1"}
        check_problem(fresh.post("/v1/jobs", json=JOB, headers=brief), 429, "too_many_waits")
        unread = fresh.post("/v1/jobs", content=b"{", headers=brief)  # its body is not looked at
        check_problem(unread, 429, "too_many_waits")
        assert [one["id"] for one in fresh.get("/v1/jobs").json()["data"]] == [job["id"]]
        assert stranger.get(other["links"]["self"], headers=brief).status_code == 200
        assert fresh.post(job["links"]["cancel"]).json()["state"] == "canceled"
    assert Counter(answer.status_code for answer in answers) == {200: at_most, 429: 20}
    assert fresh.get(submit(fresh)["links"]["self"], headers=brief).status_code == 200


def test_refused_waits_use_up_the_rate_of_their_key(
    lone_api: ApiProcess, make_key: Callable[..., str], submit: Submit
) -> None:
    at_most = WAITS_PER_KEY
    key = make_key("rated", quotas=Quotas(requests_per_minute=at_most + 6))
    answers: list[httpx2.Response] = []
    with lone_api.client(key) as client, lone_api.client(make_key("rated")) as unrated:
        job = submit(client)
        link = job["links"]["self"]
        with in_background(lambda: asyncio.run(ask_many(client, at_most + 20, link, answers))):
            wait_until(lambda: len(answers) == 20, 30, "those beyond the limit to be refused")

            def is_rated() -> bool:
                answer = client.get(link, headers={"Prefer": "wait=1"})
                return bool(answer.json().get("code") == "rate_limited")

            # Where a crowd keeps Redis from answering in time, requests pass uncounted.
            wait_until(is_rated, 30, "the rate to be used up")
            assert unrated.post(job["links"]["cancel"]).json()["state"] == "canceled"
    codes = Counter(one.json().get("code") for one in answers if one.status_code == 429)
    assert codes["too_many_waits"] >= 1


def test_a_client_that_leaves_gives_its_place_back(
    fresh: httpx2.Client, lone_api: ApiProcess, submit: Submit
) -> None:
    link = submit(fresh)["links"]["self"]
    headers = {**fresh.headers, "Prefer": "wait=60"}

    async def ask_and_leave() -> None:
        many = WAITS_PER_KEY + 1
        limits = httpx2.Limits(max_connections=many)
        async with httpx2.AsyncClient(headers=headers, limits=limits, trust_env=False) as client:
            asked = [asyncio.create_task(client.get(link, timeout=90)) for _ in range(many)]
            (refused,), held = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            check_problem(refused.result(), 429, "too_many_waits")
            for one in held:
                one.cancel()
            await asyncio.wait(held)

    asyncio.run(ask_and_leave())

    def has_place() -> bool:
        return fresh.get(link, headers={"Prefer": "wait=1"}).status_code == 200

    wait_until(has_place, 20, "a place to become free")


@pytest.mark.parametrize(
    ("crowd", "jobs_of_each"), [(2, 5), pytest.param(5, 20, marks=pytest.mark.long)]
)
def test_streams_and_waits_within_their_limits_are_all_served(
    *,
    crowd: int,
    jobs_of_each: int,
    lone_api: ApiProcess,
    make_key: Callable[..., str],
    stranger: httpx2.Client,
    submit: Submit,
    database: Database,
    redis_client: "redis.Redis",
) -> None:
    """Opened at once by several keys; each is told of its job's end, and nobody else waits long."""
    keys = [make_key(f"crowd-{number}") for number in range(crowd)]
    jobs: list[tuple[str, dict[str, Any]]] = []
    for key in keys:
        with lone_api.client(key) as client:
            jobs += [(key, submit(client)) for _ in range(jobs_of_each)]
    own = submit(stranger)
    ends: list[str] = []

    async def follow_all() -> None:
        limits = httpx2.Limits(max_connections=400)
        async with httpx2.AsyncClient(limits=limits, timeout=90, trust_env=False) as client:

            async def stream(key: str, job: dict[str, Any]) -> str:
                headers = {"Authorization": f"Bearer {key}"}
                async with client.stream("GET", job["links"]["events"], headers=headers) as answer:
                    assert answer.status_code == 200
                    body = (await answer.aread()).decode()
                return "succeeded" if '"state":"succeeded"' in body else body

            async def wait(key: str, job: dict[str, Any]) -> str:
                headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=60"}
                answer = await client.get(job["links"]["self"], headers=headers)
                return str(answer.json()["state"])

            asked = [ask(key, job) for key, job in jobs for ask in (stream, stream, wait)]
            ends.extend(await asyncio.gather(*asked))

    with in_background(lambda: asyncio.run(follow_all())):
        for _ in range(20):
            assert stranger.get(own["links"]["self"]).status_code == 200
        for _, job in jobs:
            claim(database, job)
            succeed(database, job)
            tell(redis_client, job, "job", state="succeeded", sequence=2)
    assert ends == ["succeeded"] * (3 * len(jobs))


@pytest.mark.long
def test_followers_of_a_batch_are_told_and_hardly_ask_the_database(
    environment: dict[str, str],
    relays: Relays,
    make_key: Callable[..., str],
    redis_client: "redis.Redis",
    tmp_path: Path,
) -> None:
    """Of an API that looks as often as the product does."""
    key, log = make_key("followers"), tmp_path / "api.log"
    with start_alone(environment, relays, key, log, factory=PATIENT) as usual:
        follow_a_batch(usual.http, relays, redis_client)


def follow_a_batch(http: httpx2.Client, relays: Relays, redis_client: "redis.Redis") -> None:
    followers = 8
    items = [{**JOB, "custom_id": f"c{n}"} for n in range(3)]
    batch = http.post("/v1/batches", json={"items": items}).json()["id"]
    heartbeats: Counter[int] = Counter()

    def follow(number: int) -> list[str]:
        """The states of the first results."""
        with http.stream("GET", f"/v1/batches/{batch}/results", timeout=60) as answer:
            states = []
            for line in answer.iter_lines():
                heartbeats[number] += not line
                states += [json.loads(line)["state"]] if line else []
                if len(states) == len(items):
                    return states
        raise AssertionError("it ended without the results")

    def have_heard(times: int) -> Callable[[], bool]:
        return lambda: all(heartbeats[number] >= times for number in range(followers))

    with ThreadPoolExecutor(followers) as threads:
        following = [threads.submit(follow, number) for number in range(followers)]
        wait_until(have_heard(1), 30, "the first heartbeats")
        began, passed = time.monotonic(), relays.postgres.passed
        wait_until(have_heard(2), 30, "the second heartbeats")
        a_second = (relays.postgres.passed - passed) / (time.monotonic() - began)
        assert http.post(f"/v1/batches/{batch}/cancel").status_code == 200
        assert redis_client.xlen(batch_key(decode_id("batch", batch))) == 1
        assert [one.result(30) for one in following] == [["canceled"] * len(items)] * followers
    assert a_second < 4 * followers  # two looks a second of each were some 25

"""Quotas of keys: each limit, its answer, its evidence, and what happens without Redis."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import func, literal, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.context import Resources
from api.core.errors import Problem
from api.core.principal import Principal
from api.jobs.admission import Demand, LoadShedding, admitted
from api.jobs.idempotency import IdempotentRequest
from api.jobs.submission import JobSubmission
from api.jobs.submit import Submission, _accept_group
from api.jobs.submit import submit as submit_job
from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key, rotate_key
from shared.core.database import open_engine
from shared.core.ids import decode_id, encode_id, new_id
from shared.core.keys import parse_key
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import ApiKey
from shared.images import models as image_models
from shared.images.queries import session_lock
from shared.jobs import models as job_models
from shared.jobs.queries import claims, endings
from shared.jobs.queries import quotas as quota_queries
from tests.conftest import MIGRATED
from tests.images import data_url, png
from tests.integration.api.relay import Mode, Relay
from tests.integration.security.conftest import MODEL, MakeClient
from tests.jobs import as_one, ensure_session
from tests.processes import ApiProcess, free_port, slowness, wait_until

JOB = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 2}
COST = 64 * 64 * 2


def submit(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    return client.post("/v1/jobs", json={**JOB, **fields})


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_requests_per_minute(client_with: MakeClient) -> None:
    client = client_with(quotas=Quotas(requests_per_minute=4))
    left: list[str] = []

    def has_counted_three() -> bool:
        answer = client.get("/v1/jobs")
        if "RateLimit" not in answer.headers:
            return False  # Redis was too slow to count it, and it was let pass.
        assert answer.headers["RateLimit-Policy"] == '"requests";q=4;w=60'
        left.append(answer.headers["RateLimit"].split(";")[1])
        return len(left) == 3

    wait_until(has_counted_three, 20, "three requests that are counted")
    assert left == ["r=3", "r=2", "r=1"]
    # Without Redis spending is closed, and reading open.
    fourth = wait_until(lambda: counted(submit(client)), 20, "a submission that is counted")
    assert fourth.status_code == 202
    refused = wait_until(lambda: counted(client.get("/v1/jobs")), 20, "one that is counted")
    assert refusal(refused) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["RateLimit"].startswith('"requests";r=0;t=')
    refused = wait_until(lambda: counted(submit(client)), 20, "a submission that is counted")
    assert refusal(refused) == (429, "rate_limited")


def counted(answer: httpx2.Response) -> httpx2.Response | None:
    """The answer, if Redis was quick enough to count its request."""
    return answer if "RateLimit" in answer.headers else None


def test_a_key_without_a_rate_has_no_headers_and_no_limit(client_with: MakeClient) -> None:
    answer = client_with().get("/v1/jobs")
    assert "RateLimit" not in answer.headers
    assert "RateLimit-Policy" not in answer.headers


def test_concurrent_jobs(client_with: MakeClient) -> None:
    client = client_with(quotas=Quotas(concurrent_jobs=2))
    first, second = submit(client), submit(client)
    refused = submit(client)
    assert refusal(refused) == (429, "too_many_jobs")
    assert int(refused.headers["Retry-After"]) >= 1
    client.post(f"/v1/jobs/{first.json()['id']}/cancel").raise_for_status()
    assert submit(client).status_code == 202
    assert refusal(client.post(f"/v1/jobs/{first.json()['id']}/retry")) == (429, "too_many_jobs")
    assert second.status_code == 202


def test_of_submissions_at_once_only_as_many_as_allowed_pass(client_with: MakeClient) -> None:
    client = client_with(quotas=Quotas(concurrent_jobs=3))
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: submit(client).status_code, range(16)))
    assert sorted(statuses) == [202] * 3 + [429] * 13


def test_queued_cost_is_pixels_times_steps_times_images(client_with: MakeClient) -> None:
    client = client_with(quotas=Quotas(queued_cost=4 * COST))
    assert submit(client, num_images=3).status_code == 202
    assert refusal(submit(client, num_images=2)) == (429, "queued_cost_exceeded")
    assert submit(client).status_code == 202
    assert refusal(submit(client)) == (429, "queued_cost_exceeded")


ESTIMATE = COST / 1e6 * Settings.model_fields["gpu_seconds_per_megapixel_step"].default
"""GPU-seconds held back for a `JOB` of a model without evidence."""


def run(
    database: sessionmaker[Session], job_id: str, seconds: float, *, succeeds: bool = False
) -> None:
    """Have a queued job run, take device time, and fail or succeed."""
    row_id = decode_id("job", job_id)
    with database.begin() as session:
        lease = timedelta(minutes=1)
        attempt = session.scalars(*claims.claim(row_id, "w", "cpu", lease)).one().attempt
        if succeeds:
            end = as_one(endings.succeed(row_id, attempt, seconds))
        else:
            end = endings.fail(row_id, attempt, "out_of_memory", "none left", gpu_seconds=seconds)
        session.scalars(end).one()


def test_gpu_seconds_per_day(client_with: MakeClient, database: sessionmaker[Session]) -> None:
    client = client_with(quotas=Quotas(gpu_seconds_per_day=2.0))
    run(database, submit(client).json()["id"], 2.5)
    asked = datetime.now(UTC)
    refused = submit(client)
    answered = datetime.now(UTC)
    assert refusal(refused) == (429, "gpu_seconds_exceeded")
    midnight = asked.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    wait = int(refused.headers["Retry-After"])
    assert (midnight - answered).total_seconds() - 1 <= wait
    assert wait <= (midnight - asked).total_seconds() + 1


def test_unfinished_work_holds_back_its_estimate_until_it_ends(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    """640 images were accepted under 0.01 GPU-seconds a day."""
    client = client_with(quotas=Quotas(gpu_seconds_per_day=10.5 * ESTIMATE))
    assert refusal(submit(client, num_images=11)) == (429, "gpu_seconds_exceeded")
    first = submit(client, num_images=9).json()["id"]
    assert submit(client).status_code == 202
    refused = submit(client)
    assert refusal(refused) == (429, "gpu_seconds_exceeded")
    assert int(refused.headers["Retry-After"]) < 60  # it is held back, not yet used
    usage = client.get("/v1/usage").json()["gpu_seconds_per_day"]
    assert (usage["used"], usage["reserved"]) == (0, pytest.approx(10 * ESTIMATE))
    assert usage["left"] == pytest.approx(0.5 * ESTIMATE)
    run(database, first, 3 * ESTIMATE, succeeds=True)
    usage = client.get("/v1/usage").json()["gpu_seconds_per_day"]
    assert usage["used"] == pytest.approx(3 * ESTIMATE)
    assert usage["reserved"] == pytest.approx(ESTIMATE)
    assert submit(client, num_images=6).status_code == 202
    assert refusal(submit(client)) == (429, "gpu_seconds_exceeded")


def test_a_batch_holds_back_the_estimates_of_its_jobs(client_with: MakeClient) -> None:
    quotas = Quotas(gpu_seconds_per_day=10.5 * ESTIMATE)
    client = client_with(scopes=["jobs", "batches"], quotas=quotas)
    lines = {"defaults": JOB | {"matrix": {"seed": [1, 2, 3]}}}
    many = client.post("/v1/batches", json={**lines, "items": [{}] * 4})
    assert refusal(many) == (429, "gpu_seconds_exceeded")
    assert client.post("/v1/batches", json={**lines, "items": [{}] * 3}).status_code == 202
    assert submit(client).status_code == 202
    assert refusal(submit(client)) == (429, "gpu_seconds_exceeded")


def test_of_batches_at_once_only_those_that_fit_are_kept(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    client = client_with(
        tenant="greedy", scopes=["batches", "jobs:read"], quotas=Quotas(concurrent_jobs=1000)
    )
    batch = {"defaults": JOB, "items": [{"matrix": {"seed": list(range(400))}}]}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/batches", json=batch), range(6)))
    assert sorted(answer.status_code for answer in answers) == [202] * 2 + [429] * 4
    assert client.get("/v1/usage").json()["concurrent_jobs"]["used"] == 800


def test_who_retries_pays(client_with: MakeClient, database: sessionmaker[Session]) -> None:
    """A key allowed one job at once and half a GPU-second ran twelve under another key's name."""
    free = client_with()
    jobs = [submit(free).json()["id"] for _ in range(3)]
    run(database, jobs[0], 1.0)
    for job in jobs[1:]:
        free.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    poor = client_with(quotas=Quotas(concurrent_jobs=1, gpu_seconds_per_day=0.5))
    assert poor.post(f"/v1/jobs/{jobs[0]}/retry").status_code == 202
    assert refusal(poor.post(f"/v1/jobs/{jobs[1]}/retry")) == (429, "too_many_jobs")
    run(database, jobs[0], 0.6)
    assert refusal(poor.post(f"/v1/jobs/{jobs[1]}/retry")) == (429, "gpu_seconds_exceeded")
    used = [
        client.get("/v1/usage").json()["gpu_seconds_per_day"]["used"] for client in (free, poor)
    ]
    assert used == [pytest.approx(1.0), pytest.approx(0.6)]


def test_who_retries_a_batch_pays(client_with: MakeClient, database: sessionmaker[Session]) -> None:
    free = client_with(scopes=["batches", "jobs"])
    batch = free.post("/v1/batches", json={"defaults": JOB, "items": [{}] * 3}).json()["id"]
    jobs = [job["id"] for job in free.get(f"/v1/batches/{batch}/items").json()["data"]]
    for job in jobs:
        run(database, job, 0.1)
    retry = f"/v1/batches/{batch}/retry-failed"
    few = client_with(scopes=["batches", "jobs"], quotas=Quotas(concurrent_jobs=2))
    assert refusal(few.post(retry)) == (429, "too_many_jobs")
    poor = client_with(
        scopes=["batches", "jobs"], quotas=Quotas(gpu_seconds_per_day=2.5 * ESTIMATE)
    )
    assert refusal(poor.post(retry)) == (429, "gpu_seconds_exceeded")
    able = client_with(scopes=["batches", "jobs"], quotas=Quotas(concurrent_jobs=3))
    assert able.post(retry).json()["retried"] == 3
    assert able.get("/v1/usage").json()["concurrent_jobs"]["used"] == 3
    assert refusal(submit(able)) == (429, "too_many_jobs")
    assert free.get("/v1/usage").json()["concurrent_jobs"]["used"] == 0


def test_a_batch_is_retried_by_a_key_that_may_make_its_largest_image(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    free = client_with(scopes=["batches", "jobs"])
    items = [{}, {"width": 72}, {}]
    batch = free.post("/v1/batches", json={"defaults": JOB, "items": items}).json()["id"]
    for job in free.get(f"/v1/batches/{batch}/items").json()["data"]:
        run(database, job["id"], 0.1)
    retry = f"/v1/batches/{batch}/retry-failed"
    small = client_with(scopes=["batches"], quotas=Quotas(max_pixels=64 * 64))
    assert refusal(small.post(retry)) == (403, "size_not_allowed")
    able = client_with(scopes=["batches"], quotas=Quotas(max_pixels=72 * 64))
    assert able.post(retry).json()["retried"] == 3


def test_who_has_an_image_made_again_pays(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    free = client_with()
    made = submit(free).json()
    run(database, made["id"], 0.1, succeeds=True)
    receipt = {name: made[name] for name in ("kind", "prompt", "negative_prompt", "strength")}
    receipt |= {name: JOB[name] for name in ("width", "height", "steps")}
    receipt |= {"model": {"name": MODEL}, "scheduler": {"name": made["scheduler"]}, "batch_size": 1}
    receipt |= {"seed": 1, "guidance_scale": 5.0, "output_format": "png"}
    with database.begin() as session:
        job = session.get_one(job_models.Job, decode_id("job", made["id"]))
        image = encode_id("img", _insert_image(session, job, receipt, text=made["id"]))
    reproduce = f"/v1/images/{image}/reproduce"
    none = client_with(quotas=Quotas(gpu_seconds_per_day=ESTIMATE / 2))
    assert refusal(none.post(reproduce)) == (429, "gpu_seconds_exceeded")
    one = client_with(quotas=Quotas(concurrent_jobs=1))
    assert one.post(reproduce, headers={"Prefer": "wait=0"}).status_code == 202
    assert refusal(submit(one)) == (429, "too_many_jobs")
    usage = one.get("/v1/usage").json()["gpu_seconds_per_day"]
    assert usage["reserved"] == pytest.approx(ESTIMATE)


def test_a_rotated_key_does_not_begin_anew(
    guarded: ApiProcess,
    client_with: MakeClient,
    database: sessionmaker[Session],
    settings: Settings,
) -> None:
    quotas = Quotas(gpu_seconds_per_day=1.0, concurrent_jobs=1, upload_bytes=10**6)
    old = client_with(scopes=["jobs", "batches"], quotas=quotas)
    run(database, submit(old).json()["id"], 0.7)
    assert submit(old).status_code == 202
    kept = send(old).json()["bytes"]
    kept += send(old, "/v1/batches/files", b'"a prompt"\n').json()["bytes"]
    key_id = old.get("/v1/usage").json()["key_id"]
    url = settings.database_url.get_secret_value()
    with guarded.client(rotate_key(url, key_id, timedelta(days=1))) as new:
        usage = new.get("/v1/usage").json()
        assert usage["gpu_seconds_per_day"]["used"] == pytest.approx(0.7)
        assert (usage["concurrent_jobs"]["used"], usage["upload_bytes"]["used"]) == (1, kept)
        assert refusal(submit(new)) == (429, "too_many_jobs")


def test_device_time_counts_on_the_day_it_is_used(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    """Yesterday's jobs were retried for free, and deleting a job gave back what it had used."""
    client = client_with(scopes=["jobs", "images"], quotas=Quotas(gpu_seconds_per_day=1.0))
    job = submit(client).json()["id"]
    run(database, job, 0.9)
    with database.begin() as session:
        yesterday = update(job_models.DeviceTime).values(day=job_models.DeviceTime.day - 1)
        key_id = client.get("/v1/usage").json()["key_id"]
        session.execute(yesterday.where(job_models.DeviceTime.api_key_id == key_id))
    assert client.get("/v1/usage").json()["gpu_seconds_per_day"]["used"] == 0
    assert client.post(f"/v1/jobs/{job}/retry").status_code == 202
    run(database, job, 1.2)
    assert refusal(submit(client)) == (429, "gpu_seconds_exceeded")
    assert client.delete(f"/v1/jobs/{job}").status_code == 200
    assert refusal(submit(client)) == (429, "gpu_seconds_exceeded")


def send(client: httpx2.Client, path: str = "/v1/uploads", data: bytes = b"") -> httpx2.Response:
    return client.post(path, files={"file": ("a", data or png())})


def test_uploads_that_are_kept_have_a_quota_whatever_way_they_came(
    client_with: MakeClient, storage: Storage
) -> None:
    size = send(client_with()).json()["bytes"]
    scopes = ["jobs", "images", "batches"]
    client = client_with(scopes=scopes, quotas=Quotas(upload_bytes=2 * size + 10))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: send(client), range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 429, 429]
    kept, other = (answer.json()["id"] for answer in answers if answer.status_code == 201)
    usage = client.get("/v1/usage").json()["upload_bytes"]
    assert (usage["used"], usage["left"]) == (2 * size, 10)
    objects = set(storage.list_keys("_uploads/"))
    url = data_url(png())
    for refused in (
        send(client),
        submit(client, init_image=url, strength=1.0),
        send(client, "/v1/batches/files", b'"a prompt"\n' * 100),
    ):
        assert refusal(refused) == (429, "upload_bytes_exceeded")
    assert set(storage.list_keys("_uploads/")) == objects  # nothing of what was refused is left
    assert submit(client, init_image=kept, strength=1.0).status_code == 202
    assert send(client, "/v1/batches/files", b'"a"\n').status_code == 201
    assert client.delete(f"/v1/uploads/{other}").status_code == 200
    assert submit(client, init_image=url, strength=1.0).status_code == 202


def test_of_uploads_at_once_only_those_that_fit_are_kept(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    """All have found room before the row of any is written: the table is held till then."""
    client = client_with(quotas=Quotas(upload_bytes=send(client_with()).json()["bytes"]))
    waiting = text("SELECT 1 FROM pg_locks WHERE relation = 'uploads'::regclass AND NOT granted")
    with database() as session, ThreadPoolExecutor(4) as pool:
        session.execute(text("LOCK TABLE uploads IN SHARE MODE"))
        answers = [pool.submit(send, client) for _ in range(4)]
        try:
            wait_until(lambda: len(session.scalars(waiting).all()) == 4, what="four that wait")
        finally:
            session.rollback()
        statuses = [answer.result().status_code for answer in answers]
    assert sorted(statuses) == [201, 429, 429, 429]


def test_a_refused_submission_leaves_no_image(client_with: MakeClient, storage: Storage) -> None:
    client = client_with(quotas=Quotas(concurrent_jobs=1))
    assert submit(client).status_code == 202
    objects = set(storage.list_keys("_uploads/"))
    url = data_url(png())
    refused = submit(client, init_image=url, strength=1.0)
    assert refusal(refused) == (429, "too_many_jobs")
    assert refused.json()["detail"] == "This key may have 1 jobs at once, and has 1."
    assert set(storage.list_keys("_uploads/")) == objects


def test_uploads_are_listed_newest_first_for_their_tenant_alone(client_with: MakeClient) -> None:
    mine, stranger = client_with(tenant="senders"), client_with(tenant="others")
    ids = [send(mine).json()["id"] for _ in range(3)]
    first = mine.get("/v1/uploads", params={"limit": 2}).json()
    assert [upload["id"] for upload in first["data"]] == ids[:0:-1]
    query = {"limit": 2, "after": first["next_cursor"]}
    last = mine.get("/v1/uploads", params=query).json()
    assert ([upload["id"] for upload in last["data"]], last["has_more"]) == (ids[:1], False)
    assert stranger.get("/v1/uploads").json()["data"] == []
    assert stranger.get("/v1/uploads", params=query).json()["code"] == "malformed_cursor"
    assert refusal(client_with(scopes=["search"]).get("/v1/uploads"))[0] == 403


def test_models_and_sizes(client_with: MakeClient) -> None:
    elsewhere = client_with(quotas=Quotas(models=["another"]))
    assert refusal(submit(elsewhere)) == (403, "model_not_allowed")
    assert submit(client_with(quotas=Quotas(models=[MODEL]))).status_code == 202
    of_batches = client_with(scopes=["batches"], quotas=Quotas(models=[MODEL]))
    both = {"defaults": JOB, "items": [{}, {"model": "remote"}]}
    assert refusal(of_batches.post("/v1/batches", json=both)) == (403, "model_not_allowed")
    none = submit(client_with(quotas=Quotas(models=[])))
    assert none.json()["detail"] == "This key may use no model."
    small = client_with(quotas=Quotas(max_pixels=64 * 64))
    assert submit(small).status_code == 202
    assert refusal(submit(small, width=72)) == (403, "size_not_allowed")


def test_a_replay_is_answered_whatever_the_quota(client_with: MakeClient) -> None:
    client = client_with(quotas=Quotas(concurrent_jobs=1))
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=JOB, headers=headers)
    again = client.post("/v1/jobs", json=JOB, headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    refused = client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": "twice"})
    assert refusal(refused) == (429, "too_many_jobs")


def test_usage_tells_used_and_left(
    client_with: MakeClient, database: sessionmaker[Session]
) -> None:
    quotas = Quotas(
        requests_per_minute=50,
        queued_cost=10 * COST,
        concurrent_jobs=5,
        gpu_seconds_per_day=60.0,
        max_pixels=4096,
        models=[MODEL],
    )
    client = client_with(quotas=quotas)
    submit(client, num_images=2)
    usage = client.get("/v1/usage").json()
    assert usage["requests_per_minute"]["used"] == 2
    assert usage["requests_per_minute"]["left"] == 48
    assert usage["queued_cost"] == {
        "limit": 10 * COST, "used": 2 * COST, "reserved": None, "left": 8 * COST,
        "resets_at": None,
    }  # fmt: skip
    assert (usage["concurrent_jobs"]["used"], usage["concurrent_jobs"]["left"]) == (1, 4)
    device = usage["gpu_seconds_per_day"]
    assert (device["used"], device["reserved"]) == (0, pytest.approx(2 * ESTIMATE))
    assert device["left"] == pytest.approx(60 - 2 * ESTIMATE)
    assert usage["gpu_seconds_per_day"]["resets_at"].endswith("T00:00:00Z")
    assert (usage["max_pixels"], usage["models"]) == (4096, [MODEL])
    free = client_with(scopes=["webhooks"]).get("/v1/usage").json()
    assert free["concurrent_jobs"] == {
        "limit": None, "used": 0, "reserved": None, "left": None, "resets_at": None,
    }  # fmt: skip


def test_without_redis_reading_is_open_and_spending_closed(
    guarded: ApiProcess, client_with: MakeClient, redis_relay: Relay
) -> None:
    """A key without a request rate does not notice: its jobs are accepted as ever."""
    counted, free = client_with(quotas=Quotas(requests_per_minute=100)), client_with()
    assert submit(counted).status_code == 202
    with redis_relay.set_to(Mode.REFUSE):
        assert counted.get("/v1/jobs").status_code == 200
        refused = submit(counted)
        assert refusal(refused) == (503, "quota_unavailable")
        assert int(refused.headers["Retry-After"]) >= 1
        assert counted.get("/v1/usage").json()["requests_per_minute"]["used"] is None
        assert submit(free).status_code == 202
    wait_until(lambda: submit(counted).status_code == 202, what="spending to open again")


def test_who_is_over_a_quota_is_told_how_long_the_excess_takes(
    settings: Settings, database: sessionmaker[Session], client_with: MakeClient
) -> None:
    """At the rate of the images of the last minute."""
    job_id = decode_id("job", submit(client_with()).json()["id"])
    steps = 60_000_000  # so much that no other test's image counts beside it
    with database.begin() as session:
        job = session.get_one(job_models.Job, job_id)
        image_id = _insert_image(session, job, {"steps": steps}, text=str(job_id))
    per_second = 64 * 64 * steps // 60

    async def ask() -> int:
        async with open_resources(settings) as held:
            load = held.get(LoadShedding)
            assert load.seconds(per_second) > 1  # nothing is measured yet
            await load.check(held, 1)
            return load.seconds(per_second * 5 // 2)

    assert asyncio.run(ask()) == 3
    with database.begin() as session:
        session.delete(session.get_one(image_models.Image, image_id))


@pytest.fixture
def quiet(servers: EmbeddedServers, settings: Settings) -> Iterator[Settings]:
    """A database of its own, in which nothing that waits is taken or given up meanwhile."""
    url = servers.postgres.create_database("ceiling", template=MIGRATED)
    yield Settings.model_validate({**settings.model_dump(), "database_url": url})
    servers.postgres.drop_database("ceiling")


def test_beyond_the_ceiling_nobody_queues(quiet: Settings) -> None:
    async def press() -> None:
        narrow = quiet.model_copy(update={"max_queued_cost": 10 * COST})
        async with open_resources(narrow) as held:
            for _ in range(9):
                await held.get(LoadShedding).check(held, COST)
            with pytest.raises(Problem) as refused:
                await held.get(LoadShedding).check(held, 2 * COST)
            assert refused.value.kind.code == "overloaded"
            assert 1 <= int(refused.value.headers["Retry-After"]) <= 600
            await held.get(LoadShedding).check(held, COST)
            # What was accepted here has gone elsewhere: the queue is measured again in a moment.
            began = time.monotonic()
            while not await fits(held):
                assert time.monotonic() - began < 30 * slowness()
                await asyncio.sleep(0.05)

    async def fits(held: Resources) -> bool:
        try:
            await held.get(LoadShedding).check(held, COST)
        except Problem:
            return False
        return True

    asyncio.run(press())


def test_without_postgres_the_ceiling_is_for_what_this_process_accepts(settings: Settings) -> None:
    away = f"postgresql://nobody:nothing@127.0.0.1:{free_port()}/none"
    changed = {"database_url": SecretStr(away), "max_queued_cost": 10 * COST}

    async def press() -> None:
        async with open_resources(settings.model_copy(update=changed)) as held:
            await held.get(LoadShedding).check(held, 9 * COST)
            with pytest.raises(Problem) as refused:
                await held.get(LoadShedding).check(held, 2 * COST)
            assert refused.value.kind.code == "overloaded"

    asyncio.run(press())


def principal_in(settings: Settings) -> Principal:
    """A key for submissions inside this process."""
    url = settings.database_url.get_secret_value()
    key = parse_key(create_key(url, tenant="inside", name="test", scopes=["jobs"]))
    assert key is not None
    engine = open_engine(settings)
    with engine.connect() as connection:
        tenant = connection.scalars(select(ApiKey.tenant_id).where(ApiKey.id == key.id)).one()
    engine.dispose()
    return Principal(tenant, key.id, frozenset({"jobs"}))


@pytest.fixture
def principal(settings: Settings) -> Principal:
    """In the database that the other tests use."""
    return principal_in(settings)


def test_a_replay_takes_no_room_below_the_ceiling(quiet: Settings) -> None:
    principal = principal_in(quiet)

    async def fill() -> None:
        narrow = quiet.model_copy(update={"max_queued_cost": 4 * COST})
        job = JobSubmission.model_validate(JOB)
        async with open_resources(narrow) as held:
            await submit_job(held, principal, job, "again")
            for _ in range(4):
                _, answer = await submit_job(held, principal, job, "again")
                assert answer.is_replay
            await submit_job(held, principal, job, None)

    asyncio.run(fill())


def test_work_that_is_not_written_after_all_takes_no_room_below_the_ceiling(
    quiet: Settings,
) -> None:
    principal = principal_in(quiet)
    demand = Demand(3 * COST, frozenset({MODEL}), 64 * 64, 0.0)

    async def fill() -> None:
        narrow = quiet.model_copy(update={"max_queued_cost": 4 * COST})
        async with open_resources(narrow) as held, held.transaction() as session:
            for _ in range(4):
                with pytest.raises(OSError, match="the disk is full"):
                    async with admitted(held, session, principal, demand):
                        raise OSError("the disk is full")

    asyncio.run(fill())


def test_of_submissions_in_several_processes_only_as_many_as_allowed_pass(
    settings: Settings, database: sessionmaker[Session], principal: Principal
) -> None:
    """All have seen the place free before any of them writes: their session is held till then."""
    greedy = replace(principal, quotas=Quotas(concurrent_jobs=1))
    # No worker has this model: one that were quick would make room for a second job.
    job = JobSubmission.model_validate({**JOB, "model": "held"})
    # The first is not to give up before the last one has come.
    patient = settings.model_copy(update={"database_timeout": timedelta(minutes=5)})
    waiting = text("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    with database.begin() as session:  # or they would wait for each other to make it
        session.execute(ensure_session(greedy.tenant_id, "default"))

    async def race() -> list[object]:
        async with AsyncExitStack() as stack:
            with database() as session:
                lock = session_lock(literal(greedy.tenant_id), literal("default"))
                session.execute(select(func.pg_advisory_xact_lock(lock)))
                submissions = [
                    asyncio.create_task(submit_job(held, greedy, job, None))
                    for held in [
                        await stack.enter_async_context(open_resources(patient)) for _ in range(4)
                    ]
                ]

                def all_wait() -> bool:
                    return len(session.scalars(waiting).all()) == 4

                await asyncio.to_thread(wait_until, all_wait, 30, "four that wait")
            return await asyncio.gather(*submissions, return_exceptions=True)

    refused = [one.kind.code for one in asyncio.run(race()) if isinstance(one, Problem)]
    with database.begin() as session:  # or the next worker with this model would run it
        ended = {"state": "canceled", "finished_at": func.now()}
        session.execute(update(job_models.Job).where(job_models.Job.model == "held").values(ended))
    assert refused == ["too_many_jobs"] * 3


def test_a_group_that_cannot_be_written_sends_its_members_alone(
    settings: Settings, principal: Principal
) -> None:
    """Whatever the fault: one of them has it, and not the others."""

    async def trial() -> None:
        async with open_resources(settings) as held:
            request = IdempotentRequest(None, b"")
            new = Submission(held, principal, request, {"id": object()}, [], None, None)
            assert await _accept_group([new, new]) == [None, None]

    asyncio.run(trial())


def test_the_rate_is_measured_by_finished_images(
    settings: Settings, database: sessionmaker[Session], client_with: MakeClient
) -> None:
    """An image of 64 × 64 in 2 steps within the minute counts with that cost."""
    job_id = decode_id("job", submit(client_with()).json()["id"])
    with database() as session:
        # One look: other tests' workers may finish images between two.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        measure = quota_queries.measure_queue(timedelta(minutes=1), datetime.now(UTC))
        before = session.execute(measure).one()[1]
        job = session.scalars(select(job_models.Job).where(job_models.Job.id == job_id)).one()
        _insert_image(session, job)
        assert session.execute(measure).one()[1] == before + COST
        later = datetime.now(UTC) + timedelta(minutes=2)
        measure = quota_queries.measure_queue(timedelta(minutes=1), later)
        assert session.execute(measure).one()[1] == 0
        session.rollback()


def _insert_image(
    session: Session, job: job_models.Job, receipt: dict[str, Any] | None = None, text: str = "p"
) -> UUID:
    prompt = image_models.Prompt(
        id=new_id(), tenant_id=job.tenant_id, text=text, text_sha256=text.encode(),
        embedding=[1.0], embedding_model="none",
    )  # fmt: skip
    session.add(prompt)
    session.flush()
    image_id = new_id()
    session.add(
        image_models.Image(
            id=image_id,
            tenant_id=job.tenant_id,
            job_id=job.id,
            session_id=job.session_id,
            prompt_id=prompt.id,
            index=0,
            attempt=1,
            seed=1,
            width=64,
            height=64,
            content_type="image/png",
            bytes=1,
            sha256="0",
            s3_key="k",
            thumbnail_s3_key="t",
            receipt=receipt or {"steps": 2},
            gpu_seconds=0.1,
        )
    )
    session.flush()
    return image_id

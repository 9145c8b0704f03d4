"""Each duty of the dispatcher, on a real database, Redis and S3."""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import create_engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import queries as batch_queries
from shared.batches.models import Batch
from shared.core import broker
from shared.core.broker import celery_app, publish_job
from shared.core.ids import earliest_id_at, encode_id, new_id
from shared.core.settings import Settings
from shared.core.storage import Storage, upload_key
from shared.images import queries as image_queries
from shared.images.models import Image, Prompt, Upload
from shared.jobs.models import IdempotencyKey, Job
from shared.jobs.queries import accept as job_acceptance
from shared.jobs.queries import claims, client_requests, endings
from shared.jobs.queries.lookups import list_finished
from tests.integration.batches.job_store import make_batch
from tests.jobs import accept, image_columns
from tests.processes import Process, wait_until
from worker.maintenance.cleanup import Cleanup
from worker.maintenance.leader import Dispatcher, PeriodicTask
from worker.maintenance.recovery import BatchLifecycle, Recovery

LEASE = timedelta(minutes=1)
HEARTBEAT = timedelta(seconds=5)
PAST = func.now() - timedelta(days=3)


class World:
    """A job_store, a queue of this test's own, and the duties."""

    def __init__(
        self,
        settings: Settings,
        job_store: sessionmaker[Session],
        client: "redis.Redis",
        tenant: UUID,
    ) -> None:
        self.settings = settings
        self.job_store = job_store
        self.tenant = tenant
        self.model = f"model-{uuid4().hex[:8]}"
        self.queue = broker.generate_queue(self.model, broker.INTERACTIVE)
        self.redis = client
        self.app = celery_app(settings)
        self.tasks = Recovery(settings, job_store, client, self.app)

    def submit(self, *, publish: bool = False, **fields: Any) -> UUID:
        with self.job_store.begin() as session:
            job = accept(session, self.tenant, **{"model": self.model} | fields)
        if publish:
            publish_job(self.app, job.id, job.model, job.queue_class)
        return job.id

    def claim(self, job: UUID) -> int:
        with self.job_store.begin() as session:
            poison = session.scalars(select(Job.losses).where(Job.id == job)).one() > 0
            statement = claims.claim(job, "w", "gpu", LEASE, poison=poison)
            return session.scalars(*statement).one().attempt

    def set(self, job: UUID, **values: Any) -> None:
        with self.job_store.begin() as session:
            session.execute(update(Job).where(Job.id == job).values(**values))

    def get(self, job: UUID) -> Job | None:
        with self.job_store.begin() as session:
            return session.get(Job, job)

    def state(self, job: UUID) -> str | None:
        row = self.get(job)
        return None if row is None else row.state

    @property
    def messages(self) -> int:
        return int(self.redis.llen(self.queue))


@pytest.fixture
def world(
    settings: Settings, job_store: sessionmaker[Session], redis_client: "redis.Redis", tenant: UUID
) -> Iterator[World]:
    with job_store.begin() as session:  # what other tests have left must not be found here
        session.execute(delete(Job))
    made = World(settings, job_store, redis_client, tenant)
    yield made
    redis_client.delete(made.queue)
    made.app.close()


def test_overdue_leases_are_requeued_and_published(world: World) -> None:
    dead, alive = world.submit(), world.submit()
    for job in (dead, alive):
        world.claim(job)
    world.set(dead, lease_until=PAST)
    assert [job.id for job in world.tasks.expire_leases()] == [dead]
    assert (world.state(dead), world.state(alive)) == ("queued", "running")
    assert world.messages == 1


def test_a_job_that_lost_two_workers_is_quarantined(world: World) -> None:
    job = world.submit()
    for _ in range(2):
        world.claim(job)
        world.set(job, lease_until=PAST)
        world.tasks.expire_leases()
    row = world.get(job)
    assert row is not None
    assert (row.state, row.error_code) == ("failed", "worker_lost")
    assert world.messages == 1


@pytest.mark.parametrize("which", ["start_deadline", "finish_deadline"])
def test_queued_jobs_expire_at_either_deadline(world: World, which: str) -> None:
    late, early = world.submit(), world.submit()
    world.set(late, **{which: PAST})
    world.set(early, **{which: func.now() + timedelta(hours=1)})
    assert [job.id for job in world.tasks.expire_deadlines()] == [late]
    assert (world.state(late), world.state(early)) == ("expired", "queued")


def test_a_running_job_expires_at_its_finish_deadline_and_its_worker_is_told(world: World) -> None:
    finish, start = world.submit(), world.submit()
    for job in (finish, start):
        world.claim(job)
    world.set(finish, finish_deadline=PAST)
    world.set(start, start_deadline=PAST)
    with world.redis.pubsub(ignore_subscribe_messages=True) as heard:  # type: ignore[no-untyped-call]
        heard.subscribe(broker.STOP_CHANNEL)
        heard.get_message(timeout=60)  # that it listens
        assert [job.id for job in world.tasks.expire_deadlines()] == [finish]
        message = heard.get_message(timeout=60)
    assert message["data"].decode() == str(finish)
    assert (world.state(finish), world.state(start)) == ("expired", "running")
    with world.job_store.begin() as session:
        assert session.scalars(*endings.succeed(finish, 1, 1.0)).one_or_none() is None


def test_what_redis_lost_is_published_in_the_second_round(world: World) -> None:
    lost = [world.submit() for _ in range(3)]
    kept = world.submit(publish=True)
    world.tasks.publish_lost()
    assert world.messages == 1, "a message may just be on its way"
    assert world.tasks.publish_lost() == 3
    assert world.messages == 4
    assert world.tasks.publish_lost() == 0
    messages: Any = world.redis.lrange(world.queue, 0, -1)
    sent = set(map(_task_id, messages))
    assert sent == {str(job) for job in (*lost, kept)}


def test_only_what_is_due_is_published(world: World) -> None:
    later, running, bulk = world.submit(), world.submit(), world.submit(queue_class="bulk")
    world.set(later, not_before=func.now() + timedelta(hours=1))
    world.claim(running)
    for _ in range(3):
        world.tasks.publish_lost()
    assert world.messages == 0
    world.set(later, not_before=PAST)
    for _ in range(2):
        world.tasks.publish_lost()
    assert world.messages == 1
    assert world.state(bulk) == "queued"


def test_a_retry_that_comes_before_the_end_of_its_batch_keeps_it_open(world: World) -> None:
    """The leader has seen that all jobs have ended, and waits for the batch that a client holds."""
    batch = make_batch(world.job_store, world.tenant, 1)
    with world.job_store.begin() as session:
        job = session.scalars(select(Job.id).where(Job.batch_id == batch)).one()
        running = {"state": "running", "started_at": PAST}
        session.execute(update(Batch).where(Batch.id == batch).values(**running))
    world.set(job, state="failed", error_code="internal_error", finished_at=PAST)
    waiting = text("SELECT 1 FROM pg_locks WHERE NOT granted")
    with world.job_store() as client, ThreadPoolExecutor(1) as threads:
        client.execute(batch_queries.lock_batch(world.tenant, batch))
        client.scalars(client_requests.retry(world.tenant, job, "key")).one()
        leader = threads.submit(BatchLifecycle(world.job_store, world.redis, world.app).advance)
        wait_until(lambda: client.scalars(waiting).all(), 30, "the leader at the lock")
        client.commit()
        leader.result()
    with world.job_store.begin() as session:
        assert session.get_one(Batch, batch).state == "running"
    assert world.state(job) == "queued"


# Retention -----------------------------------------------------------------------------------


def retention(world: World, storage: Storage, **values: Any) -> Cleanup:
    return Cleanup(world.settings.model_copy(update=values), world.job_store, storage)


def old_id() -> UUID:
    """An id made four days ago."""
    then = earliest_id_at(datetime.now(UTC) - timedelta(days=4))
    return UUID(int=then.int | new_id().int & (1 << 80) - 1)


def finish(
    world: World, storage: Storage, prompt: str, make_id: Callable[[], UUID] = new_id
) -> tuple[UUID, list[str]]:
    """A job that succeeded with one image, and its objects' keys."""
    job = world.submit(prompt=prompt, id=make_id())
    attempt = world.claim(job)
    folder = f"s1/{encode_id('job', job)}/{attempt}"
    keys = [f"{folder}/00.png", f"{folder}/00.thumb.webp"]
    for key in keys:
        storage.put(key, b"x", "image/png")
    with world.job_store.begin() as session:
        session.scalars(*endings.succeed(job, attempt, 1.0)).one()
        ensured = image_queries.ensure_prompt(world.tenant, prompt, [1.0] + [0.0] * 383, "test")
        row = {
            "id": make_id(),
            "tenant_id": world.tenant,
            "job_id": job,
            "session_id": "s1",
            "prompt_id": session.scalars(ensured).one(),
            "index": 0,
            "attempt": attempt,
            "seed": 7,
            "width": 64,
            "height": 64,
            "content_type": "image/png",
            "bytes": 1,
            "sha256": "0" * 64,
            "s3_key": keys[0],
            "thumbnail_s3_key": keys[1],
            "receipt": {},
            "gpu_seconds": 1.0,
        }
        session.execute(insert(Image).values(row))
    return job, keys


def images_of(world: World, job: UUID) -> int:
    with world.job_store.begin() as session:
        return session.scalars(select(func.count()).where(Image.job_id == job)).one()


def test_old_images_go_with_their_objects_and_prompts(world: World, storage: Storage) -> None:
    old_prompt = f"old {uuid4()}"
    old, old_keys = finish(world, storage, old_prompt, old_id)
    new, new_keys = finish(world, storage, f"new {uuid4()}")
    with world.job_store.begin() as session:
        session.execute(update(Image).where(Image.job_id == old).values(created_at=PAST))
    assert retention(world, storage).delete_old_images() == 0, "it is off by default"
    assert retention(world, storage, image_retention=timedelta(days=2)).delete_old_images() == 1
    assert (images_of(world, old), images_of(world, new)) == (0, 1)
    assert storage.list_keys(old_keys[0].rpartition("/")[0]) == []
    assert sorted(storage.list_keys(new_keys[0].rpartition("/")[0])) == sorted(new_keys)
    with world.job_store.begin() as session:
        left = session.scalars(select(Prompt.text).where(Prompt.text == old_prompt)).all()
    assert left == []
    assert world.state(old) == "succeeded", "the job stays as evidence"


def test_old_jobs_go_with_everything(world: World, storage: Storage) -> None:
    old, _ = finish(world, storage, "shared prompt", old_id)
    new, new_keys = finish(world, storage, "shared prompt")
    waiting = world.submit()
    world.set(old, finished_at=PAST)
    storage.put(f"s1/{encode_id('job', old)}/9/00.png", b"orphan", "image/png")
    assert retention(world, storage).delete_old_jobs() == 0
    assert retention(world, storage, job_retention=timedelta(days=2)).delete_old_jobs() == 1
    assert world.get(old) is None
    assert storage.list_keys(f"s1/{encode_id('job', old)}/") == []
    assert (images_of(world, new), world.state(waiting)) == (1, "queued")
    assert storage.get(new_keys[0]).body == b"x"


def test_uploads_that_nobody_uses_are_forgotten(world: World, storage: Storage) -> None:
    keys = {}
    with world.job_store.begin() as session:
        session.execute(delete(Upload))
        for name in ("unused", "young", "wanted", "named"):
            upload_id = new_id()
            keys[name] = upload_key(upload_id)
            storage.put(keys[name], b"x", "image/png")
            row = {"id": upload_id, "tenant_id": world.tenant, "s3_key": keys[name]}
            row |= {"width": 64, "height": 64, "content_type": "image/png", "bytes": 1}
            session.execute(image_queries.insert_upload(row | {"sha256": "0" * 64}))
        old = update(Upload).where(Upload.s3_key != keys["young"])
        session.execute(old.values(created_at=PAST, used_at=PAST))
        wanted = select(Upload.id).where(Upload.s3_key == keys["wanted"])
        session.execute(image_queries.touch_uploads(world.tenant, session.scalars(wanted).all()))
    done = world.submit(init_image={"ref": "upl_x", "s3_key": keys["named"], "sha256": "0"})
    world.set(done, state="canceled", finished_at=PAST)
    assert retention(world, storage, upload_retention=None).delete_unused_uploads() == 0
    evict = retention(world, storage, upload_retention=timedelta(hours=1)).delete_unused_uploads
    assert (evict(), evict()) == (1, 0)
    with world.job_store.begin() as session:
        left = set(session.scalars(select(Upload.s3_key)))
    assert left == {keys[name] for name in ("young", "wanted", "named")}
    assert left <= set(storage.list_keys("_uploads/"))
    assert storage.list_keys(keys["unused"]) == []


def test_old_answers_are_forgotten(world: World, storage: Storage) -> None:
    with world.job_store.begin() as session:
        for key in ("old", "new"):
            statement = job_acceptance.reserve_idempotency_key(world.tenant, key, b"")
            session.execute(statement)
        of_tenant = IdempotencyKey.tenant_id == world.tenant
        old = update(IdempotencyKey).where(of_tenant, IdempotencyKey.key == "old")
        session.execute(old.values(created_at=func.now() - timedelta(hours=25)))
    retention(world, storage).purge_idempotency_keys()
    with world.job_store.begin() as session:
        left = session.scalars(select(IdempotencyKey.key).where(of_tenant)).all()
    assert left == ["new"]


def test_orphans_of_fruitless_attempts_are_swept_and_nothing_else(
    world: World, storage: Storage
) -> None:
    lost, running = world.submit(), world.submit()
    for job in (lost, running):
        world.claim(job)
        storage.put(f"s1/{encode_id('job', job)}/1/00.png", b"x", "image/png")
    world.set(lost, lease_until=PAST)
    world.tasks.expire_leases()
    done, keys = finish(world, storage, "p")
    sweep = retention(world, storage, orphan_grace=timedelta(hours=1))
    sweep.sweep_orphans()
    assert storage.list_keys(f"s1/{encode_id('job', lost)}/") != [], "it may still be written"
    now = retention(world, storage, orphan_grace=timedelta(0))
    assert now.sweep_orphans() >= 1
    assert storage.list_keys(f"s1/{encode_id('job', lost)}/") == []
    assert storage.list_keys(f"s1/{encode_id('job', running)}/") != []
    assert sorted(storage.list_keys(f"s1/{encode_id('job', done)}/")) == sorted(keys)
    assert now.sweep_orphans() == 0, "what was swept is not looked at again"


def _task_id(message: bytes) -> str:
    return str(json.loads(message)["headers"]["id"])


# --- Leadership: one dispatcher leads, and another does when it dies or freezes ---


@contextmanager
def dispatcher(url: str, sign: Path, environment: dict[str, str]) -> Iterator[Process]:
    database = url.replace("+psycopg", "")
    process = Process(
        {**environment, "DARKROOM_DATABASE_URL": database},
        ["-m", "tests.lone_dispatcher", str(sign)],
        sign.with_suffix(".log"),
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()


def leaders(sign: Path) -> list[int]:
    return [int(line) for line in sign.read_text().split()] if sign.exists() else []


@pytest.mark.long
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_another_leads_when_the_leader_is_gone(
    quiet_url: str, environment: dict[str, str], tmp_path: Path, way: signal.Signals
) -> None:
    sign = tmp_path / "leaders"
    with dispatcher(quiet_url, sign, environment) as first:
        wait_until(lambda: leaders(sign), 60, "the first leader")
        with dispatcher(quiet_url, sign, environment) as second:
            first.send(way)
            wait_until(lambda: second.child.pid in leaders(sign), 60, "the second leader")
            if way is signal.SIGSTOP:
                first.send(signal.SIGCONT)
            so_far = len(leaders(sign))
            wait_until(lambda: len(leaders(sign)) > so_far + 10, 30, "more rounds")
    # A leader that wakes up may finish the duty that it was in; it leads no more.
    assert leaders(sign)[so_far:].count(first.child.pid) <= 1


def test_a_new_leader_expires_leases_when_workers_had_time_to_renew_them(
    settings: Settings, quiet_url: str
) -> None:
    """Those that lived through an outage of Postgres could not."""
    performed: list[str] = []
    tasks = [
        PeriodicTask("leases", lambda: performed.append("leases"), waits_for_renewals=True),
        PeriodicTask("others", lambda: performed.append("others")),
    ]
    engine = create_engine(quiet_url)
    leading = Dispatcher(settings.model_copy(update={"heartbeat": HEARTBEAT}), engine, tasks)
    try:
        leading.step()
        assert performed == ["others"]
        leading._leader_since -= HEARTBEAT.total_seconds()
        leading.step()
        assert performed == ["others", "leases", "others"]
    finally:
        leading.finish()
        engine.dispose()


# --- What estimates are learnt from: no attempt is passed by, however long it took ---


def test_a_job_is_evidence_when_it_ends_not_when_its_first_image_was_made(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    now = datetime.now(UTC)
    made_at = [now - timedelta(minutes=5), now - timedelta(seconds=1)]
    with job_store.begin() as session:
        job = accept(session, tenant, seeds=[7, 8])
        session.scalars(*claims.claim(job.id, "w", "gpu", LEASE)).one()
        session.scalars(*endings.succeed(job.id, 1, 5.0)).one()
        embedding = [1.0] + [0.0] * 383
        prompt = image_queries.ensure_prompt(tenant, job.prompt, embedding, "m")
        prompt_id = session.scalars(prompt).one()
        facts = {"prompt_id": prompt_id, "receipt": {"rows": 4, "device": "gpu"}}
        rows = [
            image_columns(job, index, id=earliest_id_at(at), gpu_seconds=2.0 + index, **facts)
            for index, at in enumerate(made_at)
        ]
        session.execute(insert(Image).values(rows))
    with job_store() as session:
        found = session.execute(list_finished(now - timedelta(seconds=30), 10)).all()
    [row] = [row for row in found if row.image_id == rows[1]["id"]]
    assert (row.images, row.rows, row.gpu_seconds) == (2, 4, 2.0)

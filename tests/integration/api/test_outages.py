"""What a submission does when Postgres, Redis or S3 is gone, slow or back."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from hashlib import sha256
from itertools import product
from typing import Any

import httpx2
import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from api.app import open_resources
from api.core.publisher import CircuitBreaker, JobPublisher, RedisDown
from shared.core.broker import INTERACTIVE, celery_app, generate_queue, job_message, publish_jobs
from shared.core.database import open_async_engine, open_engine
from shared.core.ids import decode_id, encode_id, new_id
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.tenants import Tenant
from shared.jobs.models import Job
from tests.conftest import MODELS
from tests.images import data_url
from tests.integration.api.conftest import Relays, open_relays, queued_tasks, start_alone
from tests.integration.api.relay import Mode
from tests.integration.api.test_bad_input import PNG, check_problem
from tests.integration.search.gallery import any_vector, insert_image
from tests.processes import ApiProcess, Stopwatch, slowness, wait_until
from worker.maintenance.cleanup import Cleanup

JOB = {"prompt": "a red circle"}
Sweep = Callable[[timedelta], int]


@pytest.fixture(scope="module")
def relays(environment: dict[str, str]) -> Iterator[Relays]:
    """Not those of the other tests' API, which would notice the outages later."""
    with open_relays(environment) as opened:
        yield opened


@pytest.fixture(scope="module")
def lone_api(
    environment: dict[str, str],
    relays: Relays,
    make_key: Callable[..., str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """One with the product's own limits."""
    log = tmp_path_factory.mktemp("impatient_api") / "api.log"
    seconds = Settings.model_fields["database_timeout"].default.total_seconds()
    key, limit = make_key("lone"), f"PT{seconds}S"
    own = "api.app:create_app"
    with start_alone(
        environment, relays, key, log, factory=own, DARKROOM_DATABASE_TIMEOUT=limit
    ) as process:
        yield process


@pytest.fixture(scope="module")
def http(lone_api: ApiProcess) -> httpx2.Client:
    """Its client."""
    return lone_api.http


@pytest.fixture(autouse=True)
def healthy(http: httpx2.Client) -> None:
    """Each test begins with everything up, as far as the API knows."""
    wait_until(lambda: http.get("/readyz").status_code == 200, 15, "the API to recover")


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_without_postgres_a_client_is_told_soon(
    *,
    http: httpx2.Client,
    lone_api: ApiProcess,
    relays: Relays,
    mode: Mode,
    accepted: Callable[[], tuple[int, int]],
) -> None:
    http.get("/v1/jobs?limit=1")  # the key is known, as it is in a busy process
    before = accepted()
    with relays.postgres.set_to(mode):
        watch = Stopwatch(lone_api)
        answer = http.post("/v1/jobs", json=JOB)
        elapsed = watch.seconds
        check_problem(answer, 503, "database_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert elapsed < 2 + slowness() / 2  # what the test itself takes on a busy machine
    assert accepted() == before
    assert wait_until(lambda: http.post("/v1/jobs", json=JOB).status_code == 202, 15)


def test_a_connection_that_was_cut_while_idle_is_replaced(
    settings: Settings, relays: Relays
) -> None:
    """Its next use would fail: in the API one request for each that the outage left in the pool."""
    through = settings.model_copy(update={"database_url": SecretStr(relays.postgres.url)})
    engine = open_engine(through, pre_ping=False)
    asking = open_async_engine(through)

    async def ask() -> None:
        async with asking.connect() as connection:
            assert await connection.scalar(select(1)) == 1

    def ask_both(runner: asyncio.Runner) -> None:
        runner.run(ask())
        with engine.connect() as connection:
            assert connection.scalar(select(1)) == 1

    with asyncio.Runner() as runner:
        ask_both(runner)
        with relays.postgres.set_to(Mode.REFUSE):
            pass  # Nobody asks, nobody notices.
        ask_both(runner)
        runner.run(asking.dispose())
    engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize("crowd", ["waits", "event streams", "long lists", "submissions"])
def test_a_crowd_is_told_soon_that_postgres_hangs(
    lone_api: ApiProcess,
    relays: Relays,
    make_key: Callable[..., str],
    submit: Callable[..., dict[str, Any]],
    crowd: str,
) -> None:
    """Few are served at a time; those in line do not wait for each other's timeouts."""
    quotas = Quotas(concurrent_jobs=1000) if crowd == "submissions" else None
    with lone_api.client(make_key(f"crowd of {crowd}", quotas=quotas)) as client:
        job = submit(client)["links"]
        ask: Callable[[int], httpx2.Response] = {
            "waits": lambda _: client.get(job["self"], headers={"Prefer": "wait=50"}),
            "event streams": lambda _: client.get(job["events"]),
            "long lists": lambda _: client.get("/v1/jobs?limit=200"),
            "submissions": lambda _: client.post("/v1/jobs", json=JOB),
        }[crowd]
        with relays.postgres.set_to(Mode.HANG), ThreadPoolExecutor(32) as askers:
            watch = Stopwatch(lone_api)
            answers = list(askers.map(ask, range(32)))
            elapsed = watch.seconds
    for answer in answers:
        check_problem(answer, 503, "database_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert elapsed < 8 * slowness()  # one timeout of 2 s; two at a time would take 32 s


def test_without_redis_a_job_is_accepted(
    http: httpx2.Client,
    relays: Relays,
    row_of: Callable[[str], Job],
    redis_client: "redis.Redis",
) -> None:
    with relays.redis.set_to(Mode.REFUSE):
        answer = http.post("/v1/jobs", json=JOB)
        assert answer.status_code == 202
        job = answer.json()
        assert http.get(job["links"]["self"]).json()["state"] == "queued"
        assert http.post(job["links"]["cancel"]).json()["state"] == "canceled"
    assert row_of(job["id"]).state == "canceled"
    assert str(decode_id("job", job["id"])) not in queued_tasks(redis_client)
    wait_until(lambda: http.get("/readyz").status_code == 200, 15)

    def is_published_again() -> bool:
        fresh = http.post("/v1/jobs", json=JOB).json()
        return str(decode_id("job", fresh["id"])) in queued_tasks(redis_client)

    wait_until(is_published_again, 15, "publishing to go on")


@pytest.mark.parametrize("what", ["gone", "no permission", "no list", "a closed pool"])
def test_a_publish_that_fails_fails_no_request(
    what: str, settings: Settings, relays: Relays, redis_client: "redis.Redis"
) -> None:
    """It is the first to find out: nothing has asked Redis before."""
    at = relays.redis.url
    if what == "no permission":
        rules = ("resetpass", "nopass", "allkeys", "+@all", "-lpush")
        redis_client.execute_command("ACL", "SETUSER", "reader", "reset", "on", *rules)  # type: ignore[no-untyped-call]
        at = f"redis://reader:any@{at.rpartition('@')[2].removeprefix('redis://')}"
    job = Job(id=new_id(), model=f"refused-{what}", queue_class=INTERACTIVE)
    queue = generate_queue(job.model, INTERACTIVE)
    if what == "no list":
        redis_client.set(queue, "a text")
    circuit_breaker = CircuitBreaker()
    app = celery_app(settings.model_copy(update={"redis_url": SecretStr(at)}))
    publisher = JobPublisher(app, circuit_breaker)
    if what == "a closed pool":
        app.pool.force_close_all()
    is_outage = what in {"gone", "no permission"}

    def fails() -> bool:
        assert not asyncio.run(publisher.publish(job))
        return circuit_breaker.is_open == is_outage

    try:
        with ExitStack() as stack:
            if what == "gone":
                publish_jobs(app, [job_message(job.id, "m", INTERACTIVE)])  # it was there
                stack.enter_context(relays.redis.set_to(Mode.REFUSE))
            wait_until(fails, 10, "a fault of one key, or of the process, to close no circuit")
        assert redis_client.type(queue) != b"list"
    finally:
        publisher.close()
        redis_client.delete(queue)
        redis_client.execute_command("ACL", "DELUSER", "reader")  # type: ignore[no-untyped-call]


def test_a_redis_that_hangs_costs_a_submission_little(
    http: httpx2.Client, lone_api: ApiProcess, relays: Relays
) -> None:
    with relays.redis.set_to(Mode.HANG):
        watch = Stopwatch(lone_api)
        answers = [http.post("/v1/jobs", json=JOB) for _ in range(5)]
        elapsed = watch.seconds
    assert [answer.status_code for answer in answers] == [202] * 5
    assert elapsed < 5 * slowness()  # Without the circuit each would wait for several timeouts.


@pytest.mark.parametrize("busy", [False, True])
def test_a_crowd_in_a_busy_process_is_no_outage_of_redis(settings: Settings, busy: bool) -> None:
    async def count(crowd: int) -> None:
        async with open_resources(settings) as resources:
            call, rates = resources.circuit_breaker.call, resources.rates
            counted = asyncio.gather(*(call(rates.count, "crowd", 10_000) for _ in range(crowd)))
            while not counted.done():
                await asyncio.sleep(0.001)
                if busy:
                    time.sleep(0.25)  # noqa: ASYNC251  (that is the point)
            assert all(window.allowed for window in await counted)
            assert not resources.circuit_breaker.is_open

    asyncio.run(count(1 if busy else 200))


def test_a_redis_that_hangs_opens_the_circuit_soon(settings: Settings, relays: Relays) -> None:
    at = settings.model_copy(update={"redis_url": SecretStr(relays.redis.url)})

    async def count() -> tuple[float, float]:
        async with open_resources(at) as resources:
            call, rates = resources.circuit_breaker.call, resources.rates
            await call(rates.count, "patient", 10_000)
            with relays.redis.set_to(Mode.HANG):
                started, watch = time.monotonic(), Stopwatch()
                with pytest.raises(RedisDown):
                    await call(rates.count, "patient", 10_000)
                elapsed = time.monotonic() - started
                assert resources.circuit_breaker.is_open
        return elapsed, watch.seconds

    elapsed, took = asyncio.run(count())
    assert elapsed >= 0.2
    assert took < slowness()  # 2 s, were it the connection's own timeout


def test_without_s3_only_images_are_refused(http: httpx2.Client, relays: Relays) -> None:
    with relays.s3.set_to(Mode.REFUSE):
        answer = http.post("/v1/uploads", files={"file": ("a.png", PNG)})
        check_problem(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        answer = http.post("/v1/jobs", json={**JOB, "init_image": data_url(PNG)})
        check_problem(answer, 503, "storage_unavailable")
        assert http.post("/v1/jobs", json=JOB).status_code == 202


LORA = (MODELS.parent / "loras" / "grain.safetensors").read_bytes()
LINE = b'{"prompt": "a boat"}'
UPLOADS = {
    "_uploads/": ("/v1/uploads", {}, PNG, b"image/png"),
    "_batches/": ("/v1/batches/files", {}, LINE, b"application/octet-stream"),
    "_loras/": ("/v1/loras", {"family": "sd"}, LORA, sha256(LORA).hexdigest().encode()),
}
"""Where objects lie: path, fields, content, and what the statement that inserts the row has."""


@pytest.mark.parametrize("lost", ["row and commit", "row", "answer and commit"])
def test_a_submission_of_which_nobody_knows_is_not_written_twice(
    http: httpx2.Client, relays: Relays, database: sessionmaker[Session], lost: str
) -> None:
    """Without an idempotency key the commit goes with the row; with one, with the job's answer."""
    body = {"prompt": f"a circle, lost: {lost}"}
    headers = {} if lost == "row and commit" else {"Idempotency-Key": lost}
    of_prompt = select(func.count()).where(Job.prompt == body["prompt"])
    at = b"/cancel" if lost == "answer and commit" else body["prompt"].encode()
    with relays.postgres.lose_the_answer(at):
        answer = http.post("/v1/jobs", json=body, headers=headers)
        check_problem(answer, 503, "database_unavailable")
    with database() as session:
        assert session.scalar(of_prompt) == (lost != "row")
    if headers:
        assert http.post("/v1/jobs", json=body, headers=headers).status_code == 202
        with database() as session:
            assert session.scalar(of_prompt) == 1


@pytest.mark.parametrize("case", [*product(UPLOADS, ["commit", "row"])], ids="-".join)
def test_an_object_stays_where_its_row_may_have_been_committed(
    http: httpx2.Client, relays: Relays, storage: Storage, sweep: Sweep, case: tuple[str, str]
) -> None:
    prefix, lost = case
    path, fields, content, row = UPLOADS[prefix]
    before = set(storage.list_keys(prefix))
    at = (b"COMMIT", row) if lost == "commit" else (row, b"")
    with relays.postgres.lose_the_answer(*at):
        form = fields | {"name": f"lost-{lost}"}
        answer = http.post(path, data=form, files={"file": ("a.bin", content)})
    check_problem(answer, 503, "database_unavailable")
    sweep(timedelta(hours=-2))
    assert len(set(storage.list_keys(prefix)) - before) == (lost == "commit")


def test_an_object_that_no_row_came_to_name_is_swept_later(
    http: httpx2.Client, relays: Relays, storage: Storage, sweep: Sweep
) -> None:
    """As where the API is killed behind it."""
    before = set(storage.list_keys("_batches/"))
    with relays.s3.lose_the_answer(LINE):
        answer = http.post("/v1/batches/files", files={"file": ("a.jsonl", LINE)})
    check_problem(answer, 503, "storage_unavailable")
    sweep(timedelta(minutes=-50))
    assert len(set(storage.list_keys("_batches/")) - before) == 1
    sweep(timedelta(minutes=-70))
    assert set(storage.list_keys("_batches/")) == before


@pytest.fixture
def sweep(settings: Settings, database: sessionmaker[Session], storage: Storage) -> Sweep:
    """Sweep the deletions that have been due for so long."""
    return Cleanup(settings, database, storage).sweep_pending_deletions


@pytest.fixture
def two_images(database: sessionmaker[Session], http: httpx2.Client) -> list[str]:
    """Images on record."""
    with database.begin() as session:
        tenant = session.scalars(select(Tenant.id).where(Tenant.name == "lone")).one()
        images = [insert_image(session, tenant, "a boat", any_vector(1)) for _ in range(2)]
        return [encode_id("img", image) for image in images]


@pytest.mark.parametrize("to_its_end", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_storage_that_hangs_holds_up_nothing_else(
    http: httpx2.Client, relays: Relays, two_images: list[str], to_its_end: bool
) -> None:
    """More readers than the process has threads for everything else."""
    with ThreadPoolExecutor(12) as readers, relays.s3.set_to(Mode.HANG):
        read, deleted = two_images
        path = f"/v1/images/{read}/content?proxy=1"
        reading = [readers.submit(http.get, path) for _ in range(12)]
        for _ in range(5):
            answer = http.post("/v1/images/inspect", files={"file": ("a.png", PNG)}, timeout=12)
            check_problem(answer, 422, "receipt_missing")
        gone = http.delete(f"/v1/images/{deleted}", timeout=40).json()
        assert (gone["images"], gone["objects_pending"]) == (1, True)
        if to_its_end:
            for answer in (each.result() for each in reading):
                check_problem(answer, 503, "storage_unavailable")


@pytest.mark.parametrize("part", ["database", "redis", "storage"])
def test_readiness_says_which_part_is_down(http: httpx2.Client, relays: Relays, part: str) -> None:
    relay = {"database": relays.postgres, "redis": relays.redis, "storage": relays.s3}[part]
    with relay.set_to(Mode.REFUSE):
        problem = check_problem(http.get("/readyz"), 503, "not_ready")
        assert http.get("/healthz").status_code == 200
        # All processes lose Redis or S3 at once, and an orchestrator would leave none to take jobs.
        may_have_traffic = http.get("/readyz/database").status_code == 200
        assert may_have_traffic == (part != "database")
    assert [error["parameter"] for error in problem["errors"]] == [part]
    for secret in ("127.0.0.1", str(relay.port), "Traceback", "postgres"):
        assert secret not in str(problem)

"""What a submission does when Postgres, Redis or S3 is gone, slow or back."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import INTERACTIVE, generate_queue
from shared.core.ids import from_wire, to_wire
from shared.core.tenants import Tenant
from shared.jobs.models import Job
from tests.integration.api.conftest import MODEL, Relays
from tests.integration.api.relay import Mode
from tests.integration.api.test_bad_input import PNG, check_problem, data_url
from tests.integration.search.gallery import any_vector, insert_image
from tests.processes import wait_until

JOB = {"prompt": "a red circle"}


@pytest.fixture(autouse=True)
def healthy(http: httpx2.Client) -> None:
    """Each test begins with everything up, as far as the API knows."""
    wait_until(lambda: http.get("/readyz").status_code == 200, 15, "the API to recover")


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_without_postgres_a_client_is_told_soon(
    http: httpx2.Client, relays: Relays, mode: Mode, accepted: Callable[[], tuple[int, int]]
) -> None:
    http.get("/v1/jobs?limit=1")  # the key is known, as it is in a busy process
    before = accepted()
    with relays.postgres.set_to(mode):
        started = time.monotonic()
        answer = http.post("/v1/jobs", json=JOB)
        elapsed = time.monotonic() - started
        check_problem(answer, 503, "database_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert elapsed < 2.5  # 2 s, and what the test itself takes on a busy machine
    assert accepted() == before
    assert wait_until(lambda: http.post("/v1/jobs", json=JOB).status_code == 202, 15)


def test_without_redis_a_job_is_accepted(
    http: httpx2.Client,
    relays: Relays,
    row_of: Callable[[str], Job],
    redis_client: "redis.Redis",
) -> None:
    queue = generate_queue(MODEL, INTERACTIVE)
    before: Any = redis_client.llen(queue)
    with relays.redis.set_to(Mode.REFUSE):
        answer = http.post("/v1/jobs", json=JOB)
        assert answer.status_code == 202
        job = answer.json()
        assert http.get(job["links"]["self"]).json()["state"] == "queued"
        assert http.post(job["links"]["cancel"]).json()["state"] == "canceled"
    assert row_of(job["id"]).state == "canceled"
    assert redis_client.llen(queue) == before
    wait_until(lambda: http.get("/readyz").status_code == 200, 15)

    def is_published_again() -> bool:
        fresh = http.post("/v1/jobs", json=JOB).json()
        newest: Any = redis_client.lindex(queue, 0)
        return newest is not None and str(from_wire("job", fresh["id"])).encode() in newest

    wait_until(is_published_again, 15, "publishing to go on")


def test_a_redis_that_hangs_costs_a_submission_little(http: httpx2.Client, relays: Relays) -> None:
    with relays.redis.set_to(Mode.HANG):
        started = time.monotonic()
        answers = [http.post("/v1/jobs", json=JOB) for _ in range(5)]
        elapsed = time.monotonic() - started
    assert [answer.status_code for answer in answers] == [202] * 5
    assert elapsed < 5  # Without the circuit each would wait for several timeouts.


def test_without_s3_only_pictures_are_refused(http: httpx2.Client, relays: Relays) -> None:
    with relays.s3.set_to(Mode.REFUSE):
        answer = http.post("/v1/uploads", files={"file": ("a.png", PNG)})
        check_problem(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        answer = http.post("/v1/jobs", json={**JOB, "init_image": data_url(PNG)})
        check_problem(answer, 503, "storage_unavailable")
        assert http.post("/v1/jobs", json=JOB).status_code == 202


@pytest.fixture
def two_images(database: sessionmaker[Session], http: httpx2.Client) -> list[str]:
    """Images on record."""
    with database.begin() as session:
        tenant = session.scalars(select(Tenant.id).where(Tenant.name == "lone")).one()
        images = [insert_image(session, tenant, "a boat", any_vector(1)) for _ in range(2)]
        return [to_wire("img", image) for image in images]


def test_a_storage_that_hangs_holds_up_nothing_else(
    http: httpx2.Client, relays: Relays, two_images: list[str]
) -> None:
    """More readers than the process has threads for everything else."""
    with relays.s3.set_to(Mode.HANG), ThreadPoolExecutor(12) as readers:
        read, deleted = two_images
        path = f"/v1/images/{read}/content?proxy=1"
        reading = [readers.submit(http.get, path, timeout=30) for _ in range(12)]
        for _ in range(5):
            answer = http.post("/v1/images/inspect", files={"file": ("a.png", PNG)}, timeout=5)
            check_problem(answer, 422, "receipt_missing")
        gone = http.delete(f"/v1/images/{deleted}", timeout=15).json()
        assert (gone["images"], gone["objects_pending"]) == (1, True)
        for answer in (each.result() for each in reading):
            check_problem(answer, 503, "storage_unavailable")


@pytest.mark.parametrize("part", ["database", "redis", "storage"])
def test_readiness_says_which_part_is_down(http: httpx2.Client, relays: Relays, part: str) -> None:
    relay = {"database": relays.postgres, "redis": relays.redis, "storage": relays.s3}[part]
    with relay.set_to(Mode.REFUSE):
        problem = check_problem(http.get("/readyz"), 503, "not_ready")
        assert http.get("/healthz").status_code == 200
    assert [error["parameter"] for error in problem["errors"]] == [part]
    for secret in ("127.0.0.1", str(relay.port), "Traceback", "postgres"):
        assert secret not in str(problem)

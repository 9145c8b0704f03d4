"""Workers over HTTP: what they show, who may look, draining and resuming."""

import itertools
import signal

import httpx2
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from shared.admin import queries as admin_queries
from shared.core import broker
from tests.integration.api.relay import Mode, Relay
from tests.integration.fleet.conftest import (
    Start,
    drained,
    job_of,
    submit,
    wait_for_state,
    wait_succeeded,
    worker_of,
)
from tests.processes import WorkerProcess, slowness, wait_until
from worker.core import registration


def is_taken(database: sessionmaker[Session], name: str) -> bool:
    """Whether a process has this name: its successor waits for it a second, no more."""
    lock = {"space": registration._LOCK_CLASS, "name": registration._lock_id(name) % 2**32}
    asked = "SELECT count(*) FROM pg_locks WHERE (classid, objid) = (:space, :name)"
    with database.begin() as session:
        return bool(session.scalar(text(asked), lock))


@pytest.fixture(scope="module")
def gpu(operator: httpx2.Client, start: Start) -> WorkerProcess:
    """The worker `gpu`, with both models."""
    worker = start("gpu", "generate", "--model", "quick", "--model", "slow")
    wait_for_state(operator, "gpu", "ready")
    return worker


def test_a_worker_shows_what_it_is_and_does(operator: httpx2.Client, gpu: WorkerProcess) -> None:
    worker = worker_of(operator, "gpu")
    assert (worker["kind"], worker["device"], worker["jobs"]) == ("gpu", "simulated GPU", 0)
    assert [(m["name"], m["state"], m["batch_size"]) for m in worker["models"]] == [
        ("quick", "warm", 4),
        ("slow", "warm", 2),
    ]
    assert worker["models"][1]["sizes"] == [
        {"width": 64, "height": 64},
        {"width": 128, "height": 64},
    ]
    assert 0 <= worker["lag"] <= 10  # announced every third second, for ten
    assert worker["version"]
    assert worker["drain"] is None
    assert "gpu" in [each["name"] for each in operator.get("/v1/workers").json()["data"]]
    job = submit(operator, model="slow", steps=200)
    busy = wait_for_state(operator, "gpu", "busy")
    assert busy["jobs"] == 1
    operator.post(f"/v1/jobs/{job}/cancel")
    assert operator.get(busy["links"]["self"]).json()["name"] == "gpu"


def test_models_tell_tenants_who_serves_them(operator: httpx2.Client, gpu: WorkerProcess) -> None:
    models = {model["name"]: model for model in operator.get("/v1/models").json()["data"]}
    (serving,) = [worker for worker in models["quick"]["workers"] if worker["name"] == "gpu"]
    assert (serving["model_state"], serving["batch_size"]) == ("warm", 4)


def test_only_the_operator_may_look(operator: httpx2.Client, outsider: dict[str, str]) -> None:
    for method, path in (
        ("GET", ""),
        ("GET", "/gpu"),
        ("POST", "/gpu/drain"),
        ("POST", "/gpu/resume"),
    ):
        refused = operator.request(method, f"/v1/workers{path}", headers=outsider)
        assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")


def test_an_unknown_worker_is_not_found(operator: httpx2.Client) -> None:
    for method, path in (("GET", ""), ("POST", "/drain"), ("POST", "/resume")):
        refused = operator.request(method, f"/v1/workers/nobody{path}")
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.long
def test_a_draining_worker_finishes_its_work_and_takes_no_more(
    operator: httpx2.Client, gpu: WorkerProcess
) -> None:
    in_hand = submit(operator, model="slow", steps=200)
    wait_for_state(operator, "gpu", "busy")
    first = operator.post("/v1/workers/gpu/drain").json()
    assert (first["state"], first["drain"]["drained_at"]) == ("draining", None)
    again = operator.post("/v1/workers/gpu/drain").json()
    assert again["drain"]["requested_at"] == first["drain"]["requested_at"]
    waiting = submit(operator, model="slow", steps=2)
    worker = drained(operator, "gpu")
    assert (worker["state"], worker["jobs"]) == ("draining", 0)
    assert job_of(operator, in_hand)["state"] == "succeeded"
    assert job_of(operator, waiting)["state"] == "queued"
    assert operator.post("/v1/workers/gpu/resume").json()["drain"] is None
    assert wait_succeeded(operator, waiting)["attempts"][0]["worker"] == "gpu"
    assert operator.post("/v1/workers/gpu/resume").status_code == 200


def test_a_drain_outlives_a_crash_and_a_lost_redis_and_ends_with_an_orderly_stop(
    operator: httpx2.Client,
    start: Start,
    gpu: WorkerProcess,
    redis_client: "redis.Redis",
    database: sessionmaker[Session],
) -> None:
    operator.post("/v1/workers/gpu/drain").raise_for_status()
    gpu.wait_for_log("drain_ordered")
    gpu.kill()
    wait_until(lambda: not is_taken(database, "gpu"), 30, "the news of its end in Postgres")
    redis_client.flushall()
    away = worker_of(operator, "gpu")
    assert (away["state"], away["lag"], away["models"]) == ("away", None, [])
    restarted = start("gpu", "generate", "--model", "quick")
    wait_for_state(operator, "gpu", "draining")
    waiting = submit(operator, model="quick")
    drained(operator, "gpu")
    assert job_of(operator, waiting)["state"] == "queued"
    restarted.send(signal.SIGTERM)
    assert restarted.child.wait(20 * slowness()) == 0
    assert operator.get("/v1/workers/gpu").status_code == 404
    assert redis_client.zscore(broker.WORKERS, "gpu") is None


@pytest.mark.long
def test_a_worker_that_is_told_to_end_again_and_again_ends(
    start: Start, environment: dict[str, str]
) -> None:
    """Ctrl-C reaches the whole process group, and its parent passes it on."""
    redis_relay = Relay(environment["DARKROOM_REDIS_URL"])
    worker = start("told", "generate", "--model", "quick", redis_url=redis_relay.url)
    signals_sent = itertools.count(1)

    def tell() -> bool:
        worker.send(signal.SIGTERM)
        return next(signals_sent) == 10

    with redis_relay.set_to(Mode.HANG):  # what a handler asks of Redis is open at the next signal
        wait_until(tell, 30, "ten signals")
    assert worker.child.wait(30 * slowness()) == 0
    redis_relay.close()


def test_a_worker_that_is_away_can_be_resumed_before_it_is_back(
    operator: httpx2.Client, database: sessionmaker[Session]
) -> None:
    with database.begin() as session:
        session.scalars(admin_queries.order_drain("gone", None)).one()
    assert worker_of(operator, "gone")["state"] == "away"
    assert operator.post("/v1/workers/gone/drain").status_code == 200
    assert operator.post("/v1/workers/gone/resume").status_code == 200
    assert operator.post("/v1/workers/gone/resume").status_code == 404

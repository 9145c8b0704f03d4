"""The short set of the trials: each kind of fault once or a few times, in under two minutes.

`python -m tests.chaos` runs the long set.
"""

import random
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import func, update

from shared.core import worker_registry
from shared.core.ids import encode_id
from shared.jobs.models import Job
from tests.chaos import broken, trials_job_store
from tests.chaos.checker import check
from tests.chaos.entry import CRASH_POINTS
from tests.chaos.proxy import Verdict
from tests.chaos.system import SHORT_LEASES, STEADY, System
from tests.chaos.trials_servers import (
    COMMITS,
    FEW_THREADS,
    FULL_DEVICE,
    full_disk,
    full_redis,
    read_only_redis,
    t15_two_hosts,
)
from tests.chaos.trials_workers import kept_alive
from tests.chaos.two_hosts import why_not
from tests.processes import free_port, wait_until

ON_LINUX = pytest.mark.skipif(not FULL_DEVICE.exists(), reason="no device that is always full")
QUICK = ("after_commit",)
"""Enough of the crash points for `make test`, in which a worker is killed in mid-step, too."""
LONG_JOB = 60
"""Steps; about 0.6 s, or twelve seconds for a worker with the tick `SLOW`."""
SLOW = 0.2
"""Seconds."""
ATTENTIVE = {**SHORT_LEASES, "DARKROOM_DISPATCH_INTERVAL": "PT0.2S"}
"""Here nobody measures how soon the dispatcher puts things right."""


@pytest.fixture(scope="module")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("chaos")
    with System(folder, behind=("postgres", "redis", "s3"), environment=ATTENTIVE) as system:
        yield system


@pytest.fixture
def system(shared_system: System) -> Iterator[System]:
    """The servers and the API with a dispatcher, no worker, and nothing promised yet."""
    shared_system.evict()
    shared_system.fleet.start("cpu", "cpu")
    yield shared_system
    for proxy in shared_system.proxies.values():
        proxy.refusing = proxy.silent = False
        proxy.judge = lambda _: Verdict.FORWARD
    shared_system.fleet.kill_all()


def assert_holds(system: System, *, reruns: int | None = None) -> None:
    report = check(system)
    assert report.violations == []
    if reruns is not None:
        assert report.wasted_runs == reruns


def test_a_killed_workers_job_runs_again_when_it_restarts(system: System) -> None:
    worker = system.fleet.start("w1", environment=STEADY, tick=SLOW)
    [job] = system.submit(steps=LONG_JOB)
    system.wait_running(job)
    worker.kill()
    system.fleet.start("w1", environment=STEADY)
    system.wait_all(60)
    assert_holds(system, reruns=1)
    assert [attempt.outcome for attempt in system.attempts(job)] == ["lost", "succeeded"]


@pytest.mark.long
def test_a_message_that_died_with_an_idle_worker_is_published_again(system: System) -> None:
    worker = system.fleet.start("w1")
    worker.send(signal.SIGSTOP)
    system.submit()
    worker.kill()
    system.fleet.start("w2", environment=STEADY)
    system.wait_all(60)
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_workers_that_start_before_a_full_queue_do_each_job_once(system: System) -> None:
    """Their first claims and successes come from many threads at once."""
    for name in ("w1", "w2", "w3"):
        system.submit(16)
        worker = system.fleet.start(name, environment=STEADY)
        system.wait_all(60)
        worker.kill()
    assert_holds(system, reruns=0)


def test_a_zombie_cannot_overwrite_its_rival(system: System) -> None:
    zombie = system.fleet.start("zombie", tick=SLOW)
    [job] = system.submit(steps=LONG_JOB)
    system.wait_running(job)
    zombie.send(signal.SIGSTOP)
    with system.database.begin() as session:  # what it cannot renew runs out
        session.execute(update(Job).where(Job.id == job).values(lease_until=func.now()))
    system.fleet.start("rival", environment=STEADY)
    system.wait_all(60)
    zombie.send(signal.SIGCONT)
    zombie.wait_for_log("job_stopped", 60)
    assert_holds(system, reruns=1)
    assert system.job(job).attempt == 2


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, marks=() if p in QUICK else pytest.mark.long) for p in CRASH_POINTS],
)
def test_a_crash_at_each_point_loses_and_repeats_nothing(
    system: System, tmp_path: Path, point: str
) -> None:
    how = {"crash_at": point, "crashed": str(tmp_path), "environment": STEADY}
    with kept_alive(system, "w1", **how) as deaths:
        system.submit(steps=5)
        system.wait_all(60)
        wait_until(lambda: deaths, 30, "the crash")
    assert_holds(system)


@pytest.mark.long
def test_a_poisonous_job_is_quarantined_alone_and_can_be_retried(system: System) -> None:
    with kept_alive(system, "w1", poison=666, environment=STEADY):
        others = system.submit(6)
        [poison] = system.submit(steps=20, seed=666)
        others += system.submit(6)
        system.wait_all(90)
    assert {system.job(job).state for job in others} == {"succeeded"}
    row = system.job(poison)
    assert (row.state, row.error_code, row.attempt) == ("failed", "worker_lost", 2)
    system.evict()
    system.fleet.start("w2", environment=STEADY)
    answer = system.api.http.post(f"/v1/jobs/{encode_id('job', poison)}/retry")
    assert answer.status_code in (200, 202), answer.text
    system.note(answer.json())
    system.wait_all(30)
    shown = system.api.http.get(f"/v1/jobs/{encode_id('job', poison)}").json()
    assert shown["state"] == "succeeded"
    assert [a["outcome"] for a in shown["attempts"]] == ["lost", "lost", "succeeded"]
    assert_holds(system)


def test_sigterm_finishes_what_fits_into_the_grace_and_hands_back_the_rest(
    system: System,
) -> None:
    grace = {**STEADY, "DARKROOM_SHUTDOWN_GRACE": "PT3S"}
    leaving = system.fleet.start("w1", environment=grace, tick=0.05)
    [short] = system.submit(steps=10)  # half a second
    [long] = system.submit(steps=500)  # 25 seconds
    for job in (short, long):
        system.wait_running(job)
    leaving.send(signal.SIGTERM)
    leaving.wait_gone(30)
    wait_until(lambda: system.job(long).state == "queued", 30, "the job handed back")
    system.fleet.start("w2", environment=STEADY, tick=0.001)
    system.wait_all(60)
    assert_holds(system)
    assert [attempt.outcome for attempt in system.attempts(short)] == ["succeeded"]
    assert [attempt.outcome for attempt in system.attempts(long)] == ["released", "succeeded"]
    assert system.job(long).failures == 0


def test_a_flushed_redis_loses_no_job(system: System) -> None:
    system.submit(30)
    system.servers.redis.flush()
    system.fleet.start("w1", environment=STEADY)
    system.wait_all(60)
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_a_killed_redis_costs_neither_the_job_in_hand_nor_the_worker(system: System) -> None:
    worker = system.fleet.start("w1", environment=STEADY)
    [in_hand] = system.submit(steps=LONG_JOB)
    system.wait_running(in_hand)
    system.servers.redis.kill()
    # A submission while Redis is down is accepted, and runs when it is back.
    system.submit(2)
    system.servers.redis.start()
    system.wait_all(60)
    assert worker.alive
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_repeated(system: System) -> None:
    # A claim whose answer is lost waits for the end of its lease, and another may be lost after it.
    system.fleet.start("w1", environment={**STEADY, "DARKROOM_LEASE": "PT8S"})
    proxy = system.proxies["postgres"]
    # Drawn, not counted: every third could always be the same one of a dispatcher's round.
    luck = random.Random(7)

    def a_third_of_commits(chunk: bytes) -> Verdict:
        if not any(mark in chunk for mark in COMMITS):
            return Verdict.FORWARD
        return Verdict.CUT_ANSWER if luck.random() < 1 / 3 else Verdict.FORWARD

    proxy.judge = a_third_of_commits
    system.submit(4)
    system.wait_all(60)
    proxy.judge = lambda _: Verdict.FORWARD
    assert proxy.cuts > 0
    assert_holds(system)


@pytest.mark.long
def test_finished_images_outlast_an_outage_of_postgres(system: System) -> None:
    system.fleet.start("w1", environment=STEADY)
    [job] = system.submit(steps=LONG_JOB)
    system.wait_running(job)
    system.servers.postgres.kill()
    # Long enough for the job to be done, and shorter than its lease.
    system.redis.blpop(["nothing"], timeout=1)
    system.servers.postgres.start()
    system.wait_all(60)
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_finished_images_outlast_an_outage_of_s3(system: System) -> None:
    lease = timedelta(seconds=8)
    system.fleet.start("w1", environment={"DARKROOM_LEASE": f"PT{lease.seconds}S"})
    proxy = system.proxies["s3"]
    proxy.refusing = True
    proxy.cut_all()
    [job] = system.submit()
    system.wait_running(job)
    first = system.job(job).lease_until
    assert first is not None

    def is_over() -> bool:
        """The lease that it began with, which was renewed meanwhile."""
        return (system.job(job).lease_until or first) > first + lease

    wait_until(is_over, 30, "an outage that is longer than a lease")
    proxy.refusing = False
    system.wait_all(60)
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_a_redis_out_of_memory_stops_no_worker(system: System) -> None:
    worker = system.fleet.start("w1", environment={**STEADY, **FEW_THREADS})
    assert full_redis(system) is not None
    system.wait_all(60)
    assert worker.alive
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_a_read_only_redis_costs_no_warm_model(system: System) -> None:
    worker = system.fleet.start("w1", environment=STEADY)
    read_only_redis(system, 3)
    system.wait_all(60)
    assert worker.alive
    assert_holds(system, reruns=0)


@ON_LINUX
@pytest.mark.long
def test_a_full_disk_ends_no_supervisor(system: System, tmp_path: Path) -> None:
    full_disk(system, tmp_path / "kept")
    system.wait_all(60)
    assert_holds(system)


@pytest.mark.long
def test_a_consumer_that_leaves_work_alone_says_so_and_ends(system: System) -> None:
    """Its slots were lost, by kombu's own acknowledgements: no cause that we know of now."""
    port = free_port()
    own = {**STEADY, **FEW_THREADS, "DARKROOM_METRICS_PORT": str(port)}
    impatient = {**own, "DARKROOM_STALL_LIMIT": "PT5S"}
    worker = system.fleet.start("w1", broken=["held slots"], environment=impatient)
    probe = f"http://127.0.0.1:{port}/healthz"
    assert httpx2.get(probe, trust_env=False, timeout=30).status_code == 200
    assert full_redis(system, patience=0) is None

    def faulty() -> bool:
        shown = worker_registry.list_workers(system.redis)
        return [said.state for said in shown if said.name == "w1"] == ["faulty"]

    wait_until(faulty, 30, "the worker's word that it takes nothing")
    assert httpx2.get(probe, trust_env=False, timeout=30).status_code == 503
    worker.wait_gone(30)
    system.fleet.start("w1", environment=own)
    system.wait_all(60)
    assert_holds(system, reruns=0)


@pytest.mark.long
def test_races_over_bad_connections_commit_once(tmp_path: Path) -> None:
    for result in trials_job_store.t13_races(tmp_path / "races", 30):
        assert result.violations == []


@pytest.mark.parametrize(
    ("build", "invariant"),
    [
        pytest.param(broken.no_fencing, "I2", marks=pytest.mark.long),
        pytest.param(broken.no_dispatcher, "I1", marks=pytest.mark.long),
        pytest.param(broken.early_ack, "I3", marks=pytest.mark.long),
        pytest.param(broken.held_slots, "I1", marks=pytest.mark.long),
        pytest.param(broken.fatal_refusals, "I1", marks=pytest.mark.long),
        pytest.param(broken.fatal_disk, "I1", marks=[ON_LINUX, pytest.mark.long]),
    ],
)
def test_the_checker_bites(shared_system: System, build: broken.Build, invariant: str) -> None:
    report = build(shared_system, broken=True)
    assert any(violation.startswith(invariant) for violation in report.violations)


@pytest.mark.long
def test_workers_on_another_host_finish_each_job_once_over_a_bad_line(tmp_path: Path) -> None:
    """200 ms, 5 % of all packets lost, and a partition longer than a lease."""
    if reason := why_not():
        pytest.skip(f"no second host: {reason}")
    result = t15_two_hosts(tmp_path / "run", n=1, seconds=12)
    assert result.violations == []

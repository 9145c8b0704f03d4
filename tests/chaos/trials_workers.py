"""Trials of workers: killed, frozen, crashed at a named point, poisoned, misled, replaced."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from shared.jobs.models import JobAttempt
from tests.chaos.checker import check
from tests.chaos.entry import CRASH_POINTS
from tests.chaos.fleet import Worker
from tests.chaos.result import Result, quantiles
from tests.chaos.system import SHORT_LEASES, System
from tests.processes import wait_until

LONG_JOB = 60
"""Steps of a job that takes 0.6 s on the simulated GPU: long enough to be hit in the middle."""


def t1_killed_and_restarted(folder: Path, n: int) -> Result:
    """SIGKILL mid-job at a random moment; the worker starts again under its name."""
    result = Result("T1a", "SIGKILL mid-job, worker restarts (lease 30 s)", n, 200)
    reruns = []
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1")
        for _ in range(n):
            [job] = system.submit(steps=LONG_JOB)
            system.wait_running(job)
            time.sleep(random.uniform(0, 0.4))
            worker.kill()
            killed_at = datetime.now(UTC)
            worker = system.fleet.start("w1")
            system.wait_all(60)
            reruns.append(_rerun_after(system, job, killed_at))
        result.judge(check(system))
    result.recovery = quantiles([seconds for seconds in reruns if seconds is not None])
    result.demand(result.recovery["p99"] < 10, "the rerun's p99 is not below 10 s")
    return result


def t1_killed_for_good(folder: Path, n: int) -> Result:
    """SIGKILL mid-job at a random moment; another worker takes over, with production's lease."""
    result = Result("T1b", "SIGKILL mid-job, another worker takes over (lease 30 s)", 0, 100)
    reruns: list[float] = []
    at_once = min(n, 5)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        while result.n < n:
            workers = [system.fleet.start(f"w{result.n}-{k}") for k in range(at_once)]
            jobs = [job for _ in workers for job in system.submit(steps=400)]
            for job in jobs:
                system.wait_running(job)
            killed: dict[UUID, datetime] = {}
            for worker in workers:
                time.sleep(random.uniform(0, 0.2))
                worker.kill()
                for job in jobs:
                    if system.job(job).worker == worker.log.stem:
                        killed[job] = datetime.now(UTC)
            # As many take over: a worker runs the jobs of lost workers one at a time.
            rescuers = [system.fleet.start(f"r{result.n}-{k}") for k in range(at_once)]
            system.wait_all(120)
            for rescuer in rescuers:
                rescuer.kill()
            found = [_rerun_after(system, job, at) for job, at in killed.items()]
            reruns += [seconds for seconds in found if seconds is not None]
            result.n += len(workers)
        result.judge(check(system))
    result.recovery = quantiles(reruns)
    result.demand(result.recovery["p99"] < 40, "the rerun's p99 is not below 40 s")
    return result


def t2_killed_with_the_message(folder: Path, n: int) -> Result:
    """SIGSTOP an idle worker, submit, SIGKILL it: Redis has given the message to nobody."""
    result = Result("T2", "SIGSTOP an idle worker, submit, SIGKILL it", 0, 100)
    starts: list[float] = []
    gone = 0
    at_once = min(n, 5)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        while result.n < n:
            workers = [system.fleet.start(f"w{k}") for k in range(at_once)]
            for worker in workers:
                worker.send(signal.SIGSTOP)
            jobs = system.submit(at_once, steps=5)
            queue = "generate.sim.interactive"
            time.sleep(0.1)
            for worker in workers:
                worker.kill()
            # By their ids: what killed rescuers of earlier rounds had is `unacked` for an hour.
            kept = [*system.redis.lrange(queue, 0, -1), *system.redis.hvals("unacked")]
            gone += sum(not any(str(job).encode() in one for one in kept) for job in jobs)
            killed_at = datetime.now(UTC)
            rescuer = system.fleet.start("rescuer")
            system.wait_all(60)
            rescuer.kill()
            starts += [(_first_start(system, job) - killed_at).total_seconds() for job in jobs]
            result.n += at_once
        result.judge(check(system))
    result.recovery = quantiles(starts)
    result.notes.append(f"{gone} of {result.n} messages were in neither queue nor `unacked`")
    return result


def t3_zombies(folder: Path, n: int) -> Result:
    """SIGSTOP mid-job past the lease, a rival finishes, SIGCONT: the zombie must not commit."""
    result = Result("T3", "SIGSTOP mid-job past its lease, a rival finishes, SIGCONT", 0, 200)
    reruns: list[float] = []
    with System(folder, environment=SHORT_LEASES) as system:
        system.fleet.start("cpu", "cpu")
        workers = [system.fleet.start(f"w{k}") for k in range(4)]
        while result.n < n:
            jobs = system.submit(6, steps=LONG_JOB + 40)
            for job in jobs:
                system.wait_running(job)
            holders = {job: system.job(job).worker for job in jobs}
            # Those that hold the most jobs, but not all workers: somebody must be the rival.
            names = [worker.log.stem for worker in workers]
            counts = {name: list(holders.values()).count(name) for name in names}
            frozen = [w for w in workers if 0 < counts[w.log.stem] < 6][:3]
            for worker in frozen:
                worker.send(signal.SIGSTOP)
            frozen_at = datetime.now(UTC)
            stopped = {worker.log.stem for worker in frozen}
            zombies = [
                job
                for job in jobs
                if system.job(job).state == "running" and holders[job] in stopped
            ]
            system.wait_all(60)
            for worker in frozen:
                worker.send(signal.SIGCONT)
            for job in zombies:
                found = _rerun_after(system, job, frozen_at)
                if found is not None:
                    reruns.append(found)
            result.n += len(zombies)
        time.sleep(3)  # the last zombies wake, try to commit, and are refused
        result.judge(check(system))
        refused = sum(worker.said().count("reason=lost") for worker in workers)
    result.recovery = quantiles(reruns)
    result.notes.append(f"{refused} zombies woke and gave up their attempt; none overwrote")
    return result


def t4_crash_points(folder: Path, n: int) -> list[Result]:
    """The process is killed at each named point, once for each of n jobs."""
    results = []
    with System(folder, environment=SHORT_LEASES) as system:
        system.fleet.start("cpu", "cpu")
        for point in CRASH_POINTS:
            result = Result(f"T4 {point}", f"crash {point.replace('_', ' ')}", n, 50)
            crashed = folder / "crashed"
            crashed.mkdir(exist_ok=True)
            system.evict()
            with kept_alive(system, "w1", crash_at=point, crashed=str(crashed)) as deaths:
                times = []
                for _ in range(n):
                    before = len(deaths)
                    began = time.monotonic()
                    system.submit(steps=5)
                    system.wait_all(60)
                    if point in ("after_commit", "before_ack"):  # the job ends before the crash
                        wait_until(lambda before=before: len(deaths) > before, 30, "the crash")
                    times.append(time.monotonic() - began)
                result.n = len(deaths)
            result.judge(check(system))
            result.recovery = quantiles(times)
            result.notes.append(
                "recovery is the whole time of a job, the worker's restart included"
            )
            result.demand(result.n >= n, f"only {result.n} crashes")
            results.append(result)
    return results


def t9_poison(folder: Path, n: int) -> Result:
    """One job that kills whoever draws it, among n others."""
    result = Result("T9", f"a poison job among {n}", 1, 1)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        spans = []
        for poisoned in (False, True):
            with kept_alive(system, "w1", poison=666), kept_alive(system, "w2", poison=666):
                began = time.monotonic()
                system.submit(n // 2)
                poison = system.submit(steps=20, seed=666)[0] if poisoned else None
                system.submit(n - n // 2)
                system.wait_all(300)
                spans.append(time.monotonic() - began)
        assert poison is not None
        report = check(system, expect=None)
        ended = system.job(poison)
        result.judge(report)
        result.demand(
            (ended.state, ended.error_code) == ("failed", "worker_lost"), "the poison did not fail"
        )
        result.demand(report.states["succeeded"] == 2 * n, f"others: {dict(report.states)}")
        result.demand(ended.attempt == 2, f"it took {ended.attempt} attempts")
    result.notes.append(
        f"failed after {ended.attempt} attempts with worker_lost; {n} others took "
        f"{spans[1]:.1f} s instead of {spans[0]:.1f} s"
    )
    return result


def t10_wrong_clocks(folder: Path, n: int) -> Result:
    """Workers whose wall clocks are an hour off, with jobs longer than a lease."""
    result = Result("T10", "worker clock 1 h ahead, 1 h behind", 0, 100)
    with System(folder, environment=SHORT_LEASES) as system:
        system.fleet.start("cpu", "cpu", clock=3600)
        system.fleet.start("ahead", clock=3600)
        system.fleet.start("behind", clock=-3600)
        system.submit(n, steps=500)
        system.wait_all(60 + n)
        report = check(system)
        result.judge(report)
        result.n = report.jobs
        with system.database.begin() as session:
            workers = session.scalars(select(func.count(JobAttempt.worker.distinct()))).one()
    result.demand(workers == 2, "only one of the clocks was tried")
    result.demand(result.wasted_runs == 0, "a living worker's job was rescued")
    result.notes.append(f"{result.wasted_runs} early rescues (jobs of ≥ 5 s, lease 3 s)")
    return result


def t11_rolling_restart(folder: Path, n: int) -> Result:
    """SIGTERM one of two workers after the other, under load."""
    result = Result("T11", "rolling SIGTERM under load", n, 20)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        workers = [system.fleet.start("w1"), system.fleet.start("w2")]
        stops = []
        stop_load = threading.Event()

        def load() -> None:
            while not stop_load.is_set():
                system.submit(steps=LONG_JOB)
                stop_load.wait(0.15)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for turn in range(n):
                leaving = workers.pop(0)
                wait_until(lambda: system.count("running") > 0, 30, "a running job")
                began = time.monotonic()
                leaving.send(signal.SIGTERM)
                leaving.wait_gone(30)
                stops.append(time.monotonic() - began)
                workers.append(system.fleet.start(f"w{turn % 2 + 1}"))
        finally:
            stop_load.set()
            thread.join()
        system.wait_all(60)
        result.judge(check(system))
        result.recovery = quantiles(stops)
        result.notes.append("recovery is the time from SIGTERM to the end of the process")
    return result


# --- Parts ---------------------------------------------------------------------------------------


@contextmanager
def kept_alive(system: System, name: str, **options: Any) -> Iterator[list[float]]:
    """A worker that is started again whenever it dies; gives the times of its deaths."""
    deaths: list[float] = []
    over = threading.Event()
    life: list[Worker] = [system.fleet.start(name, **options)]

    def watch() -> None:
        while not over.wait(0.02):
            if not life[-1].alive:
                deaths.append(time.monotonic())
                life.append(system.fleet.start(name, wait=False, **options))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield deaths
    finally:
        over.set()
        thread.join()
        life[-1].kill()


def _rerun_after(system: System, job: UUID, moment: datetime) -> float | None:
    """Seconds from a fault to the start of the attempt that came after it, if there was one."""
    later = [a.started_at for a in system.attempts(job) if a.started_at > moment]
    return (min(later) - moment).total_seconds() if later else None


def _first_start(system: System, job: UUID) -> datetime:
    return system.attempts(job)[0].started_at

"""Prove that the checker bites: builds that are broken on purpose must be caught.

Each defect exists only in the processes of its trial (see `tests.chaos.entry`). A result here
holds when the checker found violations.
"""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from sqlalchemy import delete

from shared.jobs.models import Job
from tests.chaos.checker import Report, check
from tests.chaos.result import Result
from tests.chaos.system import SHORT_LEASES, STEADY, System
from tests.chaos.trials_servers import FEW_THREADS, full_disk, full_redis, read_only_redis
from tests.processes import wait_until


class Build(Protocol):
    """A trial that can run a build with or without its defect."""

    def __call__(self, system: System, *, broken: bool) -> Report:
        """Run it on servers without workers, and let the checker judge."""


def prove_the_checker_bites(folder: Path) -> list[Result]:
    """Two results for each defect: with it, and without."""
    trials: list[tuple[str, str, str, Build]] = [
        ("no fencing", "commits check only the job's id, not its lease", "I2", no_fencing),
        ("no dispatcher", "nobody checks leases or lost messages", "I1", no_dispatcher),
        ("early ack", "a job is done before its images are uploaded", "I3", early_ack),
        ("held slots", "an acknowledgement that Redis refuses keeps its slot", "I1", held_slots),
        ("fatal refusals", "a refusal by Redis ends the worker", "I1", fatal_refusals),
        ("fatal disk", "a failed write ends the supervisor of `make run`", "I1", fatal_disk),
    ]
    results = []
    with System(folder, environment=SHORT_LEASES) as system:
        for name, defect, invariant, build in trials:
            results.append(_caught(name, defect, invariant, build(system, broken=True)))
            results.append(_clean(name, build(system, broken=False)))
    return results


def no_fencing(system: System, *, broken: bool) -> Report:
    """A frozen worker wakes after a rival has finished its job, and commits."""
    defects = ["no fencing"] if broken else []
    with _stage(system):
        system.fleet.start("cpu", "cpu")
        zombie = system.fleet.start("zombie", broken=defects, tick=0.1)
        [job] = system.submit(steps=60)
        system.wait_running(job)
        zombie.send(signal.SIGSTOP)
        system.fleet.start("rival", broken=defects, environment=STEADY)
        system.wait_all(60)
        zombie.send(signal.SIGCONT)
        zombie.wait_for_log("job_succeeded" if broken else "job_stopped", 60)
        return check(system)


def no_dispatcher(system: System, *, broken: bool) -> Report:
    """Redis forgets queued jobs."""
    with _stage(system):
        system.submit(3)
        system.servers.redis.flush()
        system.fleet.start("cpu", "cpu", broken=["no dispatcher"] if broken else [])
        system.fleet.start("w1")
        system.wait_all(4 if broken else 30)
        return check(system)


def early_ack(system: System, *, broken: bool) -> Report:
    """A worker is killed as soon as its job is called done."""
    with _stage(system):
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1", broken=["early ack"] if broken else [])
        [job] = system.submit()
        wait_until(lambda: system.job(job).state == "succeeded", 30, "success")
        worker.kill()
        system.wait_all(5)
        return check(system)


def held_slots(system: System, *, broken: bool) -> Report:
    """Redis is full while more jobs end than the worker has threads."""
    with _stage(system):
        system.fleet.start("cpu", "cpu")
        system.fleet.start("w1", broken=["held slots"] if broken else [], environment=FEW_THREADS)
        full_redis(system, 4 if broken else 60)
        system.wait_all(1 if broken else 60)
        return check(system)


def fatal_refusals(system: System, *, broken: bool) -> Report:
    """Redis is read-only for a moment, and nobody starts a worker that ends."""
    with _stage(system):
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1", broken=["fatal refusals"] if broken else [])
        read_only_redis(system, 2, ends=worker if broken else None)
        system.wait_all(5 if broken else 60)
        return check(system)


def fatal_disk(system: System, *, broken: bool) -> Report:
    """A kept worker dies while the disk is full."""
    with _stage(system):
        system.fleet.start("cpu", "cpu")
        home = Path(tempfile.mkdtemp(prefix="kept-"))
        full_disk(system, home, ["fatal disk"] if broken else [])
        system.wait_all(3 if broken else 60)
        return check(system)


@contextmanager
def _stage(system: System) -> Iterator[None]:
    """Nothing promised, no worker; and none left afterwards."""
    system.evict()
    try:
        yield
    finally:
        system.fleet.kill_all()
        # What a broken build has left undone must not be done in the next trial.
        with system.database.begin() as session:
            session.execute(delete(Job).where(Job.finished_at.is_(None)))


def _caught(name: str, defect: str, invariant: str, report: Report) -> Result:
    result = Result(f"broken: {name}", f"{defect}: breaks {invariant}", 1, 1)
    found = [violation for violation in report.violations if violation.startswith(invariant)]
    result.demand(bool(found), f"the checker did not notice a build with {name}")
    result.notes.append(f"caught: {found[0]}" if found else "NOT CAUGHT")
    return result


def _clean(name: str, report: Report) -> Result:
    result = Result(f"whole: {name}", "the same trial with the defect taken out", 1, 1)
    result.judge(report)
    return result

"""Prove that the checker bites: builds that are broken on purpose must be caught.

Each defect exists only in the processes of its trial (see `tests.chaos.entry`). A result here
holds when the checker found violations.
"""

import signal
from pathlib import Path

from tests.chaos.checker import Report, check
from tests.chaos.result import Result
from tests.chaos.system import SHORT_LEASES, System
from tests.processes import wait_until


def prove_the_checker_bites(folder: Path) -> list[Result]:
    """One result for each defect."""
    return [
        _caught("no fencing", "I2", no_fencing(folder / "fencing", broken=True)),
        _caught("no dispatcher", "I1", no_dispatcher(folder / "dispatcher", broken=True)),
        _caught("early ack", "I3", early_ack(folder / "ack", broken=True)),
        _clean("no fencing", no_fencing(folder / "fencing-whole", broken=False)),
        _clean("no dispatcher", no_dispatcher(folder / "dispatcher-whole", broken=False)),
        _clean("early ack", early_ack(folder / "ack-whole", broken=False)),
    ]


def no_fencing(folder: Path, *, broken: bool) -> Report:
    """A frozen worker wakes after a rival has finished its job, and commits."""
    defects = ["no fencing"] if broken else []
    with System(folder, environment=SHORT_LEASES) as system:
        system.fleet.start("cpu", "cpu")
        zombie = system.fleet.start("zombie", broken=defects)
        [job] = system.submit(steps=60)
        system.wait_running(job)
        zombie.send(signal.SIGSTOP)
        system.fleet.start("rival", broken=defects)
        system.wait_all(30)
        zombie.send(signal.SIGCONT)
        zombie.wait_for_log("job_succeeded" if broken else "job_stopped", 20)
        return check(system)


def no_dispatcher(folder: Path, *, broken: bool) -> Report:
    """Redis forgets a queued job."""
    with System(folder, environment=SHORT_LEASES) as system:
        system.submit(3)
        system.servers.redis.flush()
        system.fleet.start("cpu", "cpu", broken=["no dispatcher"] if broken else [])
        system.fleet.start("w1")
        system.wait_all(12)
        return check(system)


def early_ack(folder: Path, *, broken: bool) -> Report:
    """A worker is killed as soon as its job is called done."""
    with System(folder, environment=SHORT_LEASES) as system:
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1", broken=["early ack"] if broken else [])
        [job] = system.submit()
        wait_until(lambda: system.job(job).state == "succeeded", 30, "success")
        worker.kill()
        system.wait_all(5)
        return check(system)


def _caught(defect: str, invariant: str, report: Report) -> Result:
    result = Result(f"broken: {defect}", f"the checker must find {invariant} broken", 1, 1)
    found = [violation for violation in report.violations if violation.startswith(invariant)]
    result.demand(bool(found), f"the checker did not notice a build with {defect}")
    result.notes.append(f"caught: {found[0]}" if found else "NOT CAUGHT")
    return result


def _clean(defect: str, report: Report) -> Result:
    result = Result(f"whole: {defect}", "the same trial with the defect taken out", 1, 1)
    result.judge(report)
    return result

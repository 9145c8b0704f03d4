"""How true estimates are: jobs of mixed sizes, steps and counts arrive by chance and in bursts.

A simulated GPU with 8 rows and a system that has never seen a job: the first ones teach it. Then
each job's estimate, as its submission told it, is held against when it was done.
"""

import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Float, cast, func, select

from shared.core.ids import decode_id
from shared.jobs.calibration import DurationEstimate
from shared.jobs.models import Job
from tests.bench.row import Row, make_row
from tests.bench.system import System, running_system
from tests.processes import ApiProcess

_TEACHING = 100
_MEASURED = 320
_JOBS_PER_SECOND = 2.5
"""With the bursts 3.6: two thirds of what 8 rows of 40 ms a step can do."""
_BURST_EVERY = 40
_BURST = 12
_SEED = 20260131


def rows() -> Iterator[Row]:
    """Coverage of both quantiles, and how far the median is off."""
    with running_system() as system:
        api = system.api()
        system.process(["-m", "worker", "cpu"], "worker_ready")
        system.worker("tenth")
        outcomes = _outcomes(system, _submit_all(api))
    covered_p50 = sum(seconds <= told.p50 for told, seconds in outcomes) / len(outcomes)
    covered_p90 = sum(seconds <= told.p90 for told, seconds in outcomes) / len(outcomes)
    errors = [abs(seconds - told.p50) / seconds for told, seconds in outcomes]
    waited = sum(told.waits for told, _ in outcomes)
    against = f"{len(outcomes)} jobs, {waited} of them had to wait for a row"
    yield make_row(
        f"ETA: share of jobs done by p50 ({covered_p50:.2f}), off from 0.5 by",
        [abs(covered_p50 - 0.5)],
        unit="of jobs",
        goal=0.1,
        better="lower",
        baseline=against,
    )
    yield make_row(
        f"ETA: share of jobs done by p90 ({covered_p90:.2f}), off from 0.9 by",
        [abs(covered_p90 - 0.9)],
        unit="of jobs",
        goal=0.05,
        better="lower",
        baseline=against,
    )
    quarters = [errors[i::4] for i in range(4)]
    yield make_row(
        "ETA: median relative error of p50",
        [statistics.median(quarter) for quarter in quarters],
        unit="of actual",
        goal=0.25,
        better="lower",
        baseline="submission to end, by the database",
    )


def _submit_all(api: ApiProcess) -> list[str]:
    """Poisson arrivals, and now and then many at once; the ids of what comes after the teaching."""
    chance = random.Random(_SEED)
    ids: list[str] = []
    due = time.monotonic()
    for number in range(_TEACHING + _MEASURED):
        in_burst = number % _BURST_EVERY < _BURST
        due += 0.0 if in_burst else chance.expovariate(_JOBS_PER_SECOND)
        time.sleep(max(0.0, due - time.monotonic()))
        answer = api.http.post("/v1/jobs", json=_job(chance))
        answer.raise_for_status()
        ids.append(answer.json()["id"])
    return ids[_TEACHING:]


def _job(chance: random.Random) -> dict[str, Any]:
    return {
        "prompt": "a benchmark",
        "model": "tenth",
        "width": chance.choice((64, 64, 64, 128)),
        "height": 64,
        "steps": chance.choice((5, 10, 20, 40)),
        "num_images": chance.choice((1, 1, 2, 4)),
    }


def _outcomes(system: System, ids: list[str]) -> list[tuple[DurationEstimate, float]]:
    """(what was told, seconds it took) of these jobs, once all have ended."""
    wanted = [decode_id("job", text) for text in ids]
    system.wait_succeeded(wanted[0], len(wanted), 180)
    seconds = cast(func.extract("epoch", Job.finished_at - Job.created_at), Float)
    with system.database.begin() as session:
        found = session.execute(
            select(Job.estimate, seconds).where(Job.id.in_(wanted), Job.estimate.is_not(None))
        ).all()
    return [(DurationEstimate.from_json(told), float(took)) for told, took in found]

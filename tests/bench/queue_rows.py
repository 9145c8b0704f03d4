"""What the queue costs: a pipeline that takes no time, against a bare Celery no-op.

Three figures. Overhead: from the POST to the committed image, minus a bare Celery round trip.
Rate: jobs drained by one worker, against no-op tasks drained by one Celery worker, and against the
same jobs drained by a worker that does no more than what must last of them (`floor_worker`). Queues
are filled while the worker is stopped (SIGSTOP), so that publishing is not measured.
"""

import signal
import time
from collections.abc import Iterator
from typing import Any

from shared.core import broker
from shared.core.broker import publish_job
from shared.jobs.models import Job
from tests.bench import floor_worker
from tests.bench.http_load import prepare_post, saturate
from tests.bench.noop_worker import QUEUE, REPLY_LIST, TASK
from tests.bench.row import Row, make_row, percentile
from tests.bench.system import System, running_system
from tests.processes import ApiProcess, Process, wait_until

_ROUND_TRIPS = 100
_WARM_UP = 20
_DRAINED = 300
_NOOPS = 1500
"""More, because they are drained in a moment."""
_REPEATS = 5
_THREADS = 10


def rows() -> Iterator[Row]:
    """Overhead p50 and p99 in ms, and the rate as a ratio."""
    with running_system() as system:
        api = system.api("tests.bench.noop_api:create_app")
        worker = system.worker("null", _THREADS)
        noop = system.process(["-m", "tests.bench.noop_worker", str(_THREADS)], f"{QUEUE}_ready")
        floor = system.process(
            ["-m", "tests.bench.floor_worker", str(_THREADS)], f"{floor_worker.QUEUE}_ready"
        )
        yield from _overhead(system, api)
        yield from _rate(system, worker, noop, floor)


def _overhead(system: System, api: ApiProcess) -> Iterator[Row]:
    """By prepared bytes: what a client's library takes is not the system's."""
    ours: list[float] = []
    bare: list[float] = []
    floor: list[float] = []
    body = {"prompt": "a benchmark", "model": "null", "session_id": "bench"}
    request = prepare_post(api.url, "/v1/jobs", system.key, body, {"Prefer": "wait=30"})
    checked = prepare_post(api.url, "/noop/checked", system.key, body)
    before = system.succeeded()
    for number in range(_WARM_UP + _ROUND_TRIPS):
        [done] = saturate(api.url, request, connections=1, count=1).latencies
        started = time.perf_counter()
        _publish_noop(system, reply=True)
        system.redis.brpop([REPLY_LIST], timeout=10)
        replied = time.perf_counter() - started
        if number >= _WARM_UP:
            ours.append(done * 1000)
            bare.append(replied * 1000)
        [answered] = saturate(api.url, checked, connections=1, count=1).latencies
        started = time.perf_counter()
        _run_on_floor(system)
        if number >= _WARM_UP:
            floor.append((answered + time.perf_counter() - started) * 1000)
    assert system.succeeded() - before == 2 * (_WARM_UP + _ROUND_TRIPS)
    baseline = f"a bare Celery round trip (p50 {percentile(bare, 0.5):.1f} ms), interleaved"
    for share, goal in ((0.5, 15.0), (0.99, 50.0)):
        overhead = percentile(ours, share) - percentile(bare, share)
        yield make_row(
            f"null pipeline, submit to done, p{share * 100:g}",
            [overhead],
            unit="ms over baseline",
            goal=goal,
            better="lower",
            baseline=baseline,
        )
    yield make_row(
        "the same p50, beside the floor",
        [percentile(ours, 0.5) / percentile(floor, 0.5)],
        unit="of baseline",
        goal=1.25,
        better="lower",
        baseline=f"a checked POST and a job of the floor, together {percentile(floor, 0.5):.1f} ms",
    )


def _run_on_floor(system: System) -> None:
    """One job, from its row to the event of its end."""
    [job] = system.insert_jobs(1, model=floor_worker.MODEL)
    _publish(system, job)
    key, last = broker.events_key(job.id), b"0"
    while True:
        answer: Any = system.redis.xread({key: last}, block=10_000)
        [(_, entries)] = answer if isinstance(answer, list) else answer.items()
        last = entries[-1][0]
        if any(b"succeeded" in fields[b"data"] for _, fields in entries):
            return


def _rate(system: System, worker: Process, noop: Process, floor: Process) -> Iterator[Row]:
    ours, to_noops, to_floor = [], [], []
    for _ in range(_REPEATS):
        noops = _NOOPS / _drain_noops(system, noop)
        jobs = drain_jobs(system, worker)
        ours.append(jobs)
        to_noops.append(jobs / noops)
        to_floor.append(jobs / drain_jobs(system, floor, floor_worker.MODEL))
    what = f"ours {percentile(ours, 0.5):.0f} jobs/s"
    yield make_row(
        "durable jobs/s of one worker, null pipeline",
        to_noops,
        unit="of baseline",
        goal=0.3,
        better="higher",
        baseline=f"bare Celery no-ops, acks late; {what}",
    )
    yield make_row(
        "the same, beside the floor",
        to_floor,
        unit="of baseline",
        goal=0.8,
        better="higher",
        baseline="the same statements, files, objects and events by the same libraries, "
        "without engine, leases, retries and metrics",
    )


def drain_jobs(system: System, worker: Process, model: str = "null") -> float:
    """Jobs a second of a worker that finds a full queue."""
    jobs = system.insert_jobs(_DRAINED, model=model)
    worker.send(signal.SIGSTOP)
    for job in jobs:
        _publish(system, job)
    queue = broker.generate_queue(model, jobs[0].queue_class)
    started = time.monotonic()
    worker.send(signal.SIGCONT)
    # As for the no-ops Redis is asked, until the database need not be asked for long.
    wait_until(lambda: not system.redis.llen(queue), 120, "the jobs")
    return _DRAINED / (system.wait_succeeded(jobs[0].id, _DRAINED) - started)


def _publish(system: System, job: Job) -> None:
    publish_job(system.celery, job.id, job.model, job.queue_class)


def _drain_noops(system: System, noop: Process) -> float:
    noop.send(signal.SIGSTOP)
    for _ in range(_NOOPS):
        _publish_noop(system, reply=True)
    started = time.monotonic()
    noop.send(signal.SIGCONT)
    wait_until(lambda: system.redis.llen(REPLY_LIST) >= _NOOPS, 60, "the no-ops")
    seconds = time.monotonic() - started
    system.redis.delete(REPLY_LIST)
    return seconds


def _publish_noop(system: System, *, reply: bool) -> None:
    system.celery.send_task(TASK, args=[reply], queue=QUEUE, ignore_result=True)

"""What batches cost: taking 50,000 prompts in, running them, and whom they delay meanwhile.

The database's part of an ingest is what an accepted file takes longer than its dry run, which
does everything else; its baseline is a COPY of the very same rows with the same indexes.
"""

import io
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast
from uuid import UUID

import psycopg
from sqlalchemy import delete

from api.batches.file_formats import read_file
from api.batches.planning import LineChecker, RowWriter
from shared.batches import queries as batch_queries
from shared.core.ids import decode_id, new_id
from shared.core.model_catalog import load_catalog
from shared.jobs.models import Job
from tests.bench.http_load import prepare_post, saturate
from tests.bench.row import Row, make_row, percentile
from tests.bench.system import MODELS, System, running_system
from tests.processes import ApiProcess, wait_until

_LINES = 50_000
_INGESTS = 5
_NULL_JOBS = 600
_DRAINS = 5
_THREADS = 27
"""Of the worker with 8 rows, as by default: bulk jobs may hold 18 of them."""
_BESIDE = 10_000
_WAITS = 40
_BATCH_MS = 20 * 40.0
"""20 ticks of 40 ms: an image of the model `tenth`, and as many at once as it has rows."""


def rows() -> Iterator[Row]:
    """Ingest, drain and interference."""
    with running_system() as system:
        api = system.api()
        yield from _ingest(system, api)
        system.process(["-m", "worker", "cpu"], "worker_ready")
        system.worker("null", _THREADS)
        yield from _drain(system, api)
    with running_system() as system:
        api = system.api()
        system.process(["-m", "worker", "cpu"], "worker_ready")
        system.worker("tenth")
        yield from _interference(api)


# --- Taking in ---------------------------------------------------------------------------------


def _ingest(system: System, api: ApiProcess) -> Iterator[Row]:
    content = b"".join(
        json.dumps({"custom_id": f"c{n}", "prompt": f"a red house at dusk, image {n}"}).encode()
        + b"\n"
        for n in range(_LINES)
    )
    total, ratios, memory = [], [], []
    before = api.resident_bytes()
    for _ in range(_INGESTS):
        dry = _post(api, content, dry_run=True)[1]
        api.forget_peak()
        batch, seconds = _post(api, content)
        memory.append((api.peak_bytes() - before) / 2**20)
        total.append(seconds)
        ratios.append(_copy_raw(system, content) / max(seconds - dry, 1e-3))
        _remove(system, decode_id("batch", batch["id"]))
    yield make_row(
        "50,000 prompts accepted",
        total,
        unit="s",
        goal=5.0,
        better="lower",
        baseline="none: from the first byte of the file to the answer",
    )
    yield make_row(
        "50,000 prompts accepted, database part",
        ratios,
        unit="of baseline",
        goal=0.5,
        better="higher",
        baseline="raw COPY of the same rows into the same table, interleaved",
    )
    yield make_row(
        "growth of the API's memory meanwhile",
        memory,
        unit="MB",
        goal=100.0,
        better="lower",
        baseline="its resident memory before the first batch; the peak counts",
    )


def _post(api: ApiProcess, content: bytes, *, dry_run: bool = False) -> tuple[Any, float]:
    started = time.perf_counter()
    answer = api.http.post(
        "/v1/batches",
        params={"dry_run": str(dry_run).lower()},
        files={"file": ("prompts.jsonl", io.BytesIO(content))},
        data={"defaults": '{"model": "null"}', "session_id": "bench"},
    )
    seconds = time.perf_counter() - started
    assert answer.status_code in (200, 202), answer.text
    return answer.json(), seconds


def _copy_raw(system: System, content: bytes) -> float:
    """Seconds of a bare COPY of the rows that the API makes of the file, with a commit."""
    batch_id = new_id()
    columns = {
        "id": batch_id,
        "tenant_id": system.tenant,
        "source": "jsonl",
        "batch_metadata": {},
        "models": ["null"],
        "on_error": "reject",
        "lines": _LINES,
        "invalid_lines": 0,
        "jobs": _LINES,
        "images": _LINES,
        "cost": 1,
        "priority": 5,
        "state": "queued",
    }
    with system.database.begin() as session:
        session.execute(batch_queries.insert_batch(columns))
    spool = io.BytesIO()
    writer = RowWriter(
        cast("BinaryIO", spool),
        batch_id=batch_id,
        tenant_id=system.tenant,
        api_key_id="bench",
        max_attempts=3,
        now=datetime.now(UTC),
    )
    checker = LineChecker(
        {"model": "null", "session_id": "bench"},
        templates=True,
        catalog=load_catalog(MODELS),
        settings=system.settings,
        families={},
        uploaded={},
    )
    for line in read_file(io.BytesIO(content), "jsonl"):
        for job in checker.check(line):
            writer.write(job, job.plan, None, 0.0)
    with psycopg.connect(system.servers.database_url) as connection:
        started = time.perf_counter()
        with connection.cursor() as cursor, cursor.copy(batch_queries.COPY_JOBS) as copy:
            copy.write(spool.getvalue())
        connection.commit()
        seconds = time.perf_counter() - started
    _remove(system, batch_id)
    return seconds


def _remove(system: System, batch_id: UUID) -> None:
    with system.database.begin() as session:
        session.execute(delete(Job).where(Job.batch_id == batch_id))
    with psycopg.connect(system.servers.database_url, autocommit=True) as connection:
        connection.execute("VACUUM jobs")


# --- Running -----------------------------------------------------------------------------------


def _drain(system: System, api: ApiProcess) -> Iterator[Row]:
    ratios, ours = [], []
    for number in range(_DRAINS + 1):
        alone = _run_interactive(system, api)
        batch = _run_batch(system, api)
        if number:  # the first round warms both
            ours.append(batch)
            ratios.append(batch / alone)
    yield make_row(
        f"finishing the null jobs of a batch, {_NULL_JOBS} at a time",
        ratios,
        unit="of baseline",
        goal=1.0,
        better="higher",
        baseline="interactive null jobs over HTTP, from the first request to the last end; "
        f"the batch: {percentile(ours, 0.5):.0f} jobs/s",
    )


def _run_interactive(system: System, api: ApiProcess) -> float:
    """Jobs a second, submitted one by one on eight connections."""
    body = {"prompt": "a benchmark", "model": "null", "session_id": "bench"}
    request = prepare_post(api.url, "/v1/jobs", system.key, body)
    first = new_id()
    started = time.monotonic()
    saturate(api.url, request, 8, _NULL_JOBS)
    return _NULL_JOBS / (system.wait_succeeded(first, _NULL_JOBS) - started)


def _run_batch(system: System, api: ApiProcess) -> float:
    """Jobs a second, submitted as one file."""
    started = time.monotonic()
    batch, _ = _post(api, b'"a benchmark"\n' * _NULL_JOBS)
    first = decode_id("batch", batch["id"])
    return _NULL_JOBS / (system.wait_succeeded(first, _NULL_JOBS) - started)


# --- Beside ------------------------------------------------------------------------------------


def _interference(api: ApiProcess) -> Iterator[Row]:
    _waits(api, 5)
    alone = _waits(api, _WAITS)
    answer = api.http.post(
        "/v1/batches",
        files={"file": ("prompts.jsonl", io.BytesIO(b'"a benchmark"\n' * _BESIDE))},
        data={"defaults": '{"model": "tenth"}', "session_id": "bench"},
    )
    assert answer.status_code == 202, answer.text
    batch = answer.json()["id"]
    wait_until(lambda: _counts(api, batch)["running"] >= 8, 60, "a busy device")
    beside = _waits(api, _WAITS)
    assert _counts(api, batch)["queued"] > 0, "the batch did not last"
    api.http.post(f"/v1/batches/{batch}/cancel")
    yield make_row(
        f"interactive p95 wait beside a batch of {_BESIDE:,} lines",
        [percentile(beside, 0.95) - percentile(alone, 0.95)],
        unit="ms more",
        goal=_BATCH_MS,
        better="lower",
        baseline=f"without the batch ({percentile(alone, 0.95):.0f} ms); the goal is the time of "
        "one GPU batch",
    )


def _waits(api: ApiProcess, count: int) -> list[float]:
    """Milliseconds from each request to its answer, less the job's own denoising."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        answer = api.http.post(
            "/v1/jobs",
            json={"prompt": "quick", "model": "tenth", "session_id": "bench"},
            headers={"Prefer": "wait=60"},
        )
        assert answer.json()["state"] == "succeeded", answer.text
        found.append((time.perf_counter() - started) * 1000 - _BATCH_MS)
    return found


def _counts(api: ApiProcess, batch: str) -> dict[str, int]:
    counts: dict[str, int] = api.http.get(f"/v1/batches/{batch}").json()["counts"]
    return counts

"""`python -m tests.scale.growth`: what a database of 10⁴ to 10⁷ finished jobs makes slower.

Grows one database from count to count, keeps it, and goes on where an earlier run stopped. Ten
million jobs take about an hour and 40 GB of disk. Vectors are left out: `make bench-search` has
them.
"""

# ruff: noqa: T201 - a command line prints
import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, text

from shared.core.database import no_statement_timeout
from shared.core.ids import encode_id
from shared.jobs.models import Job
from shared.jobs.queries import claims
from tests.bench.queue_rows import drain_jobs
from tests.bench.system import System, running_system
from tests.pages import markdown, put_into
from tests.processes import PROJECT, ApiProcess

COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)
DEFAULT_HOME = Path(".darkroom/growth")
DOCS = PROJECT / "docs" / "scaling.md"

_PROMPTS = 1_000_000
"""Distinct ones, at most; a session has 100 jobs."""
_CHUNK = 100_000
_REPEATS = 30
_DRAINS = 5
_WAITING = 1_000
_TABLES = ("jobs", "job_attempts", "images", "prompts", "sessions")

Rows = dict[str, float]
"""Milliseconds by what was asked, and `jobs_per_second`."""


def main() -> int:
    """Grow, measure, write after each count; print and put the tables into the page."""
    options = _parse()
    file = options.home.with_suffix(".json")
    found: dict[str, Rows] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    with running_system(options.home) as system:
        for count in options.counts:
            if str(count) in found:
                continue
            began = time.monotonic()
            grow(system, count)
            grown = time.monotonic()
            found[str(count)] = measure(system, count)
            file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
            spent = f"grown in {grown - began:.0f} s, measured in {time.monotonic() - grown:.0f} s"
            print(f"{count:,} jobs: {spent}", file=sys.stderr, flush=True)
    tables = {"growth": _speed_table(found), "disk": _disk_table(found)}
    print("\n".join(tables.values()))
    if options.docs:
        put_into(DOCS, tables)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.scale.growth", description=__doc__)
    parser.add_argument("counts", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--home", type=Path, default=DEFAULT_HOME, help="where the data stay")
    parser.add_argument("--docs", action="store_true", help="put the tables into docs/scaling.md")
    return parser.parse_args()


# --- Growing --------------------------------------------------------------------------------------


def grow(system: System, count: int) -> None:
    """Add finished jobs until there are so many: one a second of the past, the newest last."""
    engine = system.engine
    clear(system)  # of what a measurement has left that was cut
    with no_statement_timeout(engine) as connection:
        there = connection.scalar(text("SELECT count(*) FROM jobs")) or 0
        for function in _FUNCTIONS:
            connection.execute(text(function))
    for first in range(there, count, _CHUNK):
        # All of a chunk is there or nothing: a run that is cut goes on behind the last one.
        with engine.begin() as connection:
            _add(connection, system, first, min(first + _CHUNK, count) - 1)
    with no_statement_timeout(engine) as connection:
        connection.execute(text("VACUUM ANALYZE"))


def clear(system: System) -> None:
    """Take away the jobs of measurements, and what Redis holds."""
    with no_statement_timeout(system.engine) as connection:
        mine = text("DELETE FROM jobs WHERE tenant_id = :tenant AND session_id = 'bench'")
        connection.execute(mine, {"tenant": system.tenant})
    system.redis.flushall()


def _add(connection: Connection, system: System, first: int, last: int) -> None:
    values = {"first": first, "last": last, "tenant": system.tenant, "prompts": _PROMPTS}
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    for statement in _FILL:
        connection.execute(text(statement), values)


_FUNCTIONS = (
    # A UUIDv7 of row `n` of a table, `kind`: as many seconds late as there are rows before it.
    """CREATE OR REPLACE FUNCTION grown_id(kind int, n bigint) RETURNS uuid
       IMMUTABLE LANGUAGE sql AS $$
           SELECT (lpad(to_hex(1700000000000 + n * 1000), 12, '0') || '7'
               || lpad(to_hex(kind), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid
       $$""",
    """CREATE OR REPLACE FUNCTION grown_prompt(n bigint) RETURNS text
       IMMUTABLE LANGUAGE sql AS $$ SELECT 'a generated prompt about number ' || n $$""",
)
_FILL = (
    """INSERT INTO sessions (tenant_id, id) SELECT :tenant, 'grown-' || n / 100
       FROM generate_series(CAST(:first AS bigint), :last) n GROUP BY n / 100
       ON CONFLICT DO NOTHING""",
    """INSERT INTO prompts (id, tenant_id, text, text_sha256, embedding, embedding_model)
        SELECT grown_id(1, n), :tenant, grown_prompt(n),
            sha256(convert_to(grown_prompt(n), 'UTF8')),
            '[1,0,0]'::vector, 'generated'
        FROM generate_series(CAST(:first AS bigint), LEAST(:last, :prompts - 1)) n""",
    """INSERT INTO jobs (id, tenant_id, session_id, kind, model, queue_class, prompt, seeds, width,
            height, steps, guidance_scale, scheduler, output_format, metadata, cost, max_attempts,
            state, sequence, attempt, gpu_seconds, created_at, started_at, finished_at)
        SELECT grown_id(2, n), :tenant, 'grown-' || n / 100, 'txt2img', 'null', 'interactive',
            grown_prompt(n % :prompts), ARRAY[n], 512, 512, 20, 5, 'ddim', 'png',
            jsonb_build_object('n', n::text), 5242880, 3, 'succeeded', 3, 1, 0.8,
            made, made + interval '1 s', made + interval '3 s'
        FROM generate_series(CAST(:first AS bigint), :last) n,
            LATERAL (SELECT to_timestamp(1700000000 + n) AS made) AS at""",
    """INSERT INTO job_attempts (job_id, number, worker, device, started_at, finished_at, outcome,
           gpu_seconds)
       SELECT grown_id(2, n), 1, 'gpu-0', 'a simulated GPU', to_timestamp(1700000001 + n),
           to_timestamp(1700000003 + n), 'succeeded', 0.8
       FROM generate_series(CAST(:first AS bigint), :last) n""",
    """INSERT INTO images (id, tenant_id, job_id, session_id, prompt_id, index, attempt, seed,
            width, height, content_type, bytes, sha256, s3_key, thumbnail_s3_key, receipt,
            gpu_seconds, created_at)
        SELECT grown_id(3, n), :tenant, grown_id(2, n), 'grown-' || n / 100,
            grown_id(1, n % :prompts), 0, 1, n, 512, 512, 'image/png', 400000,
            lpad(n::text, 64, '0'),
            grown_id(2, n) || '/1/00.png', grown_id(2, n) || '/1/00.thumb.webp',
            jsonb_build_object('kind', 'txt2img', 'prompt', grown_prompt(n % :prompts),
                'negative_prompt', NULL, 'model',
                jsonb_build_object('name', 'null', 'sha256', repeat('0', 64)), 'seed', n,
                'width', 512, 'height', 512, 'steps', 20, 'guidance_scale', 5, 'scheduler', 'ddim',
                'software', repeat('a version of something; ', 12)),
            0.8, to_timestamp(1700000003 + n)
        FROM generate_series(CAST(:first AS bigint), :last) n""",
)


# --- Measuring ------------------------------------------------------------------------------------


def measure(system: System, count: int) -> Rows:
    """What the hot path and the lists take now; the jobs that this makes are taken away again."""
    api = system.api()
    worker = system.worker("null", 10)
    try:
        # The lists first: afterwards the newest jobs are all of one session.
        lists = _lists(api, count)
        rates = [drain_jobs(system, worker) for _ in range(_DRAINS)]
        found = {"jobs_per_second": median(rates)} | lists
        worker.send(signal.SIGSTOP)
        waiting = system.insert_jobs(_WAITING)
        found |= _waiting(system, api, waiting)
    finally:
        worker.send(signal.SIGCONT)
        worker.stop()
        api.stop()
    with system.engine.begin() as connection:
        for table in _TABLES:
            size = connection.scalar(text(f"SELECT pg_total_relation_size('{table}')"))
            found[f"bytes of {table}"] = float(size or 0)
    clear(system)
    return found


def _lists(api: ApiProcess, count: int) -> Rows:
    middle = count // 2
    session = f"grown-{middle // 100}"
    before = f"&created_before={1_700_000_000 + middle}"
    paths = {
        "newest 50 jobs": "/v1/jobs?limit=50",
        "50 jobs from the middle": f"/v1/jobs?limit=50{_at(before)}",
        "50 failed jobs, of which there are none": "/v1/jobs?limit=50&state=failed",
        "jobs of a session": f"/v1/jobs?limit=50&session_id={session}",
        "images of a session": f"/v1/sessions/{session}/images?limit=50",
        "newest 50 sessions": "/v1/sessions?limit=50",
        "newest 50 images, by filter": "/v1/search?limit=50&model=null",
        "an image by its seed": f"/v1/search?limit=50&seed={middle}",
    }
    return {name: _asked(api, path) for name, path in paths.items()}


def _at(before: str) -> str:
    name, seconds = before.split("=")
    return f"{name}={time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(int(seconds)))}"


def _asked(api: ApiProcess, path: str) -> float:
    def ask() -> None:
        answer = api.http.get(path)
        assert answer.status_code == 200, answer.text

    return _milliseconds(ask)


def _waiting(system: System, api: ApiProcess, jobs: list[Job]) -> Rows:
    """With a thousand jobs in line: the last one's position, a submission, a claim."""
    last = encode_id("job", jobs[-1].id)

    def submit() -> None:
        body = {"prompt": "a benchmark", "model": "null", "session_id": "bench"}
        answer = api.http.post("/v1/jobs", json=body)
        assert answer.status_code == 202, answer.text

    claimed = iter(jobs)

    def claim() -> None:
        statement = claims.claim(next(claimed).id, "w", "cpu", system.settings.lease)
        with system.database() as session:
            assert session.scalars(*statement).one()
            session.rollback()

    name = f"{_WAITING:,} jobs wait"
    return {
        f"a job and its position while {name}": _asked(api, f"/v1/jobs/{last}"),
        f"a submission while {name}": _milliseconds(submit),
        f"a claim while {name}": _milliseconds(claim),
    }


def _milliseconds(ask: Callable[[], None]) -> float:
    times = []
    for _ in range(_REPEATS + 5):
        began = time.perf_counter()
        ask()
        times.append(1000 * (time.perf_counter() - began))
    return median(times[5:])


# --- Tables ---------------------------------------------------------------------------------------


def _speed_table(found: Mapping[str, Rows]) -> str:
    counts = sorted(found, key=int)
    names = [name for name in found[counts[0]] if not name.startswith("bytes of ")]
    rows = []
    for name in names:
        values = [found[count][name] for count in counts]
        said = "null jobs/s of one worker" if name == "jobs_per_second" else name
        cells = (f"{value:.3g}" for value in values)
        rows.append([said, *cells, f"{values[-1] / values[0]:.2f}"])
    head = ["p50, in ms", *(f"{int(count):,}" for count in counts), "last to first"]
    return "\n".join(markdown(head, rows)) + "\n"


def _disk_table(found: Mapping[str, Rows]) -> str:
    count = max(found, key=int)
    sizes: dict[str, Any] = {
        table: found[count][f"bytes of {table}"] / int(count) for table in _TABLES
    }
    a_year = 365 * 24 * 3600 / 1e9
    sizes["all"] = sum(sizes.values())
    rows = ([table, f"{size:,.0f}", f"{size * a_year:.1f}"] for table, size in sizes.items())
    head = ("table and its indexes", "bytes a job", "GB a year at 1 job/s")
    return "\n".join(markdown(head, rows)) + "\n"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())

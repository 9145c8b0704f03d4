"""What is read before and after a window: CPU of each server, commands, transactions, locks."""

import threading
import time
from collections import Counter
from dataclasses import dataclass

import psutil
import redis
from sqlalchemy import Engine, text

_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Reading:
    """Totals at one moment; the difference of two is a window."""

    at: float
    """Monotonic time at which jobs and claims were counted."""
    postgres_cpu: float
    redis_cpu: float
    s3_cpu: float
    workers_cpu: float
    redis_commands: int
    transactions: int
    rollbacks: int
    wal_bytes: int
    claims: int
    succeeded: int


class Meter:
    """Reads servers of this machine by their process ids."""

    def __init__(
        self, engine: Engine, client: "redis.Redis", pids: dict[str, int], workers: list[int]
    ) -> None:
        """``pids`` of ``postgres`` (the postmaster), ``redis`` and ``s3``."""
        self._engine = engine
        self._redis = client
        self._pids = pids
        self._workers = workers

    def read(self) -> Reading:
        """All of it, in about ten milliseconds."""
        stats = self._redis.info("commandstats")
        with self._engine.connect() as connection:
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
            database = connection.execute(text(_DATABASE)).one()
            wal = connection.scalar(text("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
            claims = connection.scalar(text("SELECT count(*) FROM job_attempts"))
            succeeded = connection.scalar(
                text("SELECT count(*) FROM jobs WHERE state = 'succeeded'")
            )
            at = time.monotonic()
        return Reading(
            at=at,
            postgres_cpu=cpu_of_tree(self._pids["postgres"]),
            redis_cpu=_cpu(self._pids["redis"]),
            s3_cpu=_cpu(self._pids["s3"]),
            workers_cpu=sum(_cpu(pid) for pid in self._workers),
            redis_commands=sum(int(of["calls"]) for of in stats.values()),
            transactions=int(database[0]),
            rollbacks=int(database[1]),
            wal_bytes=int(wal or 0),
            claims=int(claims or 0),
            succeeded=int(succeeded or 0),
        )


class LockWatch:
    """Looks ten times a second at what Postgres' backends wait for. A context manager."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waits: Counter[str] = Counter()
        self._samples = 0
        self.connections = 0
        """The most that there were."""
        self.active = 0
        """The most that ran a statement at once."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="locks", daemon=True)

    def __enter__(self) -> "LockWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def waiting(self, kind: str) -> float:
        """How many backends, on average, waited for this kind: `Lock`, `LWLock`, `IO`."""
        return self._waits[kind] / max(1, self._samples)

    def _run(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._stop.wait(_SAMPLE_SECONDS):
                rows = connection.execute(text(_ACTIVITY)).all()
                self._samples += 1
                self.connections = max(self.connections, sum(row[2] for row in rows))
                active = sum(row[2] for row in rows if row[0] == "active")
                self.active = max(self.active, active)
                for state, kind, count in rows:
                    if state == "active" and kind:
                        self._waits[kind] += count


_DATABASE = (
    "SELECT xact_commit, xact_rollback FROM pg_stat_database WHERE datname = current_database()"
)
_ACTIVITY = """
SELECT state, wait_event_type, count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1, 2
"""


def _cpu(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def cpu_of_tree(pid: int) -> float:
    """A postmaster, its backends, and those that have ended and that it has buried."""
    postmaster = psutil.Process(pid)
    times = postmaster.cpu_times()
    living = sum(_cpu(child.pid) for child in postmaster.children())
    return float(times.user + times.system + times.children_user + times.children_system + living)

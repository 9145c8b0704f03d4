"""Where one Postgres, one Redis and one dispatcher stop: costs of a job times jobs, in code.

Linear on purpose: what was measured for each job does not change with N (the measurement shows
it), so the model is multiplication. It knows nothing of networks between machines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEARTBEAT_SECONDS = 10.0
ROUND_SECONDS = 2.0
PROGRESS_COMMANDS_PER_SECOND = 8.0
"""Of a running job: four events a second at most, two commands each (`worker.jobs.progress`)."""
MEASURED_IMAGE_SECONDS = 1.0
"""How long an image of the paced GPU takes; its progress is among a job's measured commands."""


@dataclass(frozen=True)
class Costs:
    """Of one job and of one idle worker, as measured; times are CPU or statement times."""

    postgres_ms_per_job: float
    redis_ms_per_job: float
    redis_commands_per_job: float
    wal_kilobytes_per_job: float
    connections_per_worker: float
    heartbeat_cpu_ms: float
    dispatcher_empty_ms: float
    dispatcher_ms_per_thousand_queued: float

    @classmethod
    def from_measurements(cls, row: Mapping[str, Any], scans: Mapping[str, float]) -> "Costs":
        """From a row of `tests.scale.run` and the costs of `tests.scale.scans`."""
        more = scans["dispatcher_full_ms"] - scans["dispatcher_empty_ms"]
        return cls(
            postgres_ms_per_job=row["postgres_cpu_ms_per_job"],
            redis_ms_per_job=row["redis_cpu_ms_per_job"],
            redis_commands_per_job=row["redis_commands_per_job"],
            wal_kilobytes_per_job=row["wal_kilobytes_per_job"],
            connections_per_worker=row["connections"] / row["workers"],
            heartbeat_cpu_ms=scans["heartbeat_cpu_ms"],
            dispatcher_empty_ms=scans["dispatcher_empty_ms"],
            dispatcher_ms_per_thousand_queued=max(0.0, more)
            / (scans["dispatcher_queued_jobs"] / 1000),
        )


@dataclass(frozen=True)
class Fleet:
    """What is asked of the servers."""

    gpus: int
    images_per_second: float
    """Of one GPU; a job has one image here, the dearest case for the queue."""
    queued_jobs: int = 20_000


def loads(costs: Costs, fleet: Fleet) -> dict[str, float]:
    """How busy each part is. A share above 1 cannot be; above 0.7 it is no longer quick."""
    jobs = fleet.gpus * fleet.images_per_second
    heartbeats = fleet.gpus / HEARTBEAT_SECONDS
    longer = max(0.0, 1 / fleet.images_per_second - MEASURED_IMAGE_SECONDS)
    progress = jobs * longer * PROGRESS_COMMANDS_PER_SECOND
    # A worker announces itself with one SET at each heartbeat.
    commands = jobs * costs.redis_commands_per_job + progress + heartbeats
    milliseconds_per_command = costs.redis_ms_per_job / costs.redis_commands_per_job
    dispatching = (
        costs.dispatcher_empty_ms
        + costs.dispatcher_ms_per_thousand_queued * fleet.queued_jobs / 1000
    ) / 1000
    idle = heartbeats * costs.heartbeat_cpu_ms / 1000 + dispatching / ROUND_SECONDS
    return {
        "jobs_per_second": jobs,
        "postgres_cores": jobs * costs.postgres_ms_per_job / 1000 + idle,
        "postgres_connections": fleet.gpus * costs.connections_per_worker,
        "wal_megabytes_per_second": jobs * costs.wal_kilobytes_per_job / 1024,
        "redis_share_of_a_core": commands * milliseconds_per_command / 1000,
        "redis_commands_per_second": commands,
        "dispatcher_share_of_a_round": dispatching / ROUND_SECONDS,
    }


@dataclass(frozen=True)
class Budget:
    """What one machine for each server gives before waiting begins."""

    postgres_cores: float = 11.0  # 0.7 of 16
    postgres_connections: float = 2000.0  # each is a process of some megabytes
    wal_megabytes_per_second: float = 200.0
    redis_share_of_a_core: float = 0.7
    redis_commands_per_second: float = 100_000.0
    dispatcher_share_of_a_round: float = 0.7


def largest_fleet(costs: Costs, images_per_second: float, budget: Budget) -> tuple[int, str]:
    """The most GPUs that every part bears, and the part that bears no more (at most 1,000,000)."""

    def overloaded(gpus: int) -> str | None:
        found = loads(costs, Fleet(gpus, images_per_second))
        for part, most in vars(budget).items():
            if found[part] > most:
                return str(part)
        return None

    low, high = 0, 1_000_000
    limit = overloaded(high) or "nothing"
    while high - low > 1:
        middle = (low + high) // 2
        part = overloaded(middle)
        if part is None:
            low = middle
        else:
            high, limit = middle, part
    return low, limit

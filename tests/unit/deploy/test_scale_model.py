"""The model of many GPUs: multiplication, and the first part that gives way."""

from pathlib import Path

import pytest

from tests.pages import put_into
from tests.processes import PROJECT
from tests.scale.model import Budget, Costs, Fleet, largest_fleet, loads
from tests.scale.tables import tables

COSTS = Costs(
    postgres_ms_per_job=5.0,
    redis_ms_per_job=0.25,
    redis_commands_per_job=20.0,
    wal_kilobytes_per_job=4.0,
    connections_per_worker=4.0,
    heartbeat_cpu_ms=0.5,
    dispatcher_empty_ms=10.0,
    dispatcher_ms_per_thousand_queued=2.0,
)


def test_work_grows_with_jobs_and_connections_with_workers() -> None:
    slow = loads(COSTS, Fleet(gpus=1000, images_per_second=0.1))
    quick = loads(COSTS, Fleet(gpus=100, images_per_second=1.0))
    assert slow["jobs_per_second"] == quick["jobs_per_second"] == 100
    assert slow["wal_megabytes_per_second"] == quick["wal_megabytes_per_second"]
    assert slow["postgres_connections"] == 10 * quick["postgres_connections"] == 4000
    # 100 jobs/s × 5 ms, 100 heartbeats/s × 0.5 ms, and 50 ms of scans in each 2 s.
    assert slow["postgres_cores"] == pytest.approx(0.5 + 0.05 + 0.025)


def test_slow_images_report_more_progress() -> None:
    slow = loads(COSTS, Fleet(gpus=1000, images_per_second=0.1))
    # 100 jobs/s × 20 commands, 9 s more of each image × 8 commands, 100 announcements.
    assert slow["redis_commands_per_second"] == pytest.approx(2000 + 7200 + 100)


def test_a_longer_queue_is_a_longer_round() -> None:
    short = loads(COSTS, Fleet(10, 1.0, queued_jobs=0))["dispatcher_share_of_a_round"]
    long = loads(COSTS, Fleet(10, 1.0, queued_jobs=500_000))["dispatcher_share_of_a_round"]
    assert short == pytest.approx(0.005)
    assert long == pytest.approx(0.505)


def test_the_first_part_that_gives_way_is_named() -> None:
    assert largest_fleet(COSTS, 0.1, Budget()) == (500, "postgres_connections")
    many = Budget(postgres_connections=1e9)
    gpus, part = largest_fleet(COSTS, 5.0, many)
    assert part == "postgres_cores"
    assert loads(COSTS, Fleet(gpus, 5.0))["postgres_cores"] <= many.postgres_cores
    assert loads(COSTS, Fleet(gpus + 1, 5.0))["postgres_cores"] > many.postgres_cores


def test_costs_come_from_what_was_measured() -> None:
    row = {
        "workers": 32,
        "postgres_cpu_ms_per_job": 2.0,
        "redis_cpu_ms_per_job": 0.3,
        "redis_commands_per_job": 17.0,
        "wal_kilobytes_per_job": 4.0,
        "connections": 128,
    }
    scans = {
        "dispatcher_empty_ms": 10.0,
        "dispatcher_full_ms": 50.0,
        "dispatcher_queued_jobs": 20_000.0,
        "heartbeat_cpu_ms": 0.4,
    }
    costs = Costs.from_measurements(row, scans)
    assert costs.connections_per_worker == 4
    assert costs.dispatcher_ms_per_thousand_queued == 2


def test_the_tables_go_between_their_markers(tmp_path: Path) -> None:
    row = {
        "regime": "paced",
        "workers": 32,
        "jobs_per_second": 31.9,
        "missed_claims_per_job": 0.0,
        "waiting_for_locks": 0.0,
        "waiting_inside": 0.001,
        "connections": 131,
        "postgres_cpu_ms_per_job": 2.0,
        "redis_cpu_ms_per_job": 0.3,
        "redis_commands_per_job": 22.5,
        "worker_cpu_ms_per_job": 20.0,
        "transactions_per_job": 4.4,
        "wal_kilobytes_per_job": 4.4,
        "machine_busy": 0.6,
        "load_average_before": 0.1,
    }
    scans = {
        "dispatcher_empty_ms": 10.0,
        "dispatcher_full_ms": 50.0,
        "dispatcher_queued_jobs": 20_000.0,
        "heartbeat_cpu_ms": 0.4,
    }
    page = tmp_path / "scaling.md"
    page.write_text((PROJECT / "docs" / "scaling.md").read_text("utf-8"), "utf-8")
    found = tables([row], scans)
    put_into(page, found)
    put_into(page, found)  # again changes nothing
    text = page.read_text("utf-8")
    assert text.count("| paced | 32 | 31.9 | 0 | 131 |") == 1
    assert "postgres connections" in found["stops"]
    with pytest.raises(ValueError, match="no one place"):
        put_into(page, {"elsewhere": ""})

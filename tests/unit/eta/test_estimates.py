"""The model of the queue, rates from attempts, and quantiles that cover what they say."""

import random
from datetime import UTC, datetime

import pytest

from api.jobs import estimates
from api.jobs.estimates import Acceptances
from shared.core.worker_registry import ModelStatus, WorkerHeartbeat
from shared.jobs.calibration import (
    Calibration,
    DurationEstimate,
    EstimateOutcome,
    Finished,
    Prices,
    RateBook,
    Workload,
    quantile,
    work_of,
)
from shared.jobs.estimates import (
    Load,
    Snapshot,
    ThroughputMeter,
    estimate_queued,
    estimate_running,
    rows_of,
    servers,
)

GPU = "a GPU"
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def work(steps: int = 10, images: int = 1, width: int = 64) -> Workload:
    return Workload("m", width, 64, steps, guided=True, images=images)


def worker(rows: int = 4, **fields: object) -> WorkerHeartbeat:
    model = ModelStatus(name="m", batch_size=rows)
    said = {"name": "w", "state": "ready", "device": GPU, "models": (model,), "started_at": NOW}
    return WorkerHeartbeat.model_validate({**said, **fields})


def snapshot(*attempts: Finished, loads: tuple[Load, ...] = ()) -> Snapshot:
    book = RateBook()
    book.learn(attempts)
    return Snapshot(rates=book.rates(), loads=loads)


def finished(seconds: float, steps: int = 10, rows: int = 4) -> Finished:
    """An attempt that had its device to itself."""
    return Finished(work(steps), GPU, rows, gpu_seconds=seconds, run_seconds=seconds)


@pytest.mark.parametrize(
    ("gpu_seconds", "run_seconds"),
    [(2.0, 2.0), (0.5, 6.0), (1.0, 2.0)],
    ids=["alone", "in a full batch, after a wait", "beside another"],
)
def test_the_time_in_a_row_is_found_whatever_the_load(
    gpu_seconds: float, run_seconds: float
) -> None:
    assert Finished(work(), GPU, 4, gpu_seconds, run_seconds).row_seconds == pytest.approx(2.0)


def test_a_job_is_priced_by_what_such_jobs_were_charged_lately() -> None:
    book = RateBook()
    book.learn(Finished(work(), GPU, 4, gpu_seconds, 8.0) for gpu_seconds in (0.4, 0.5, 9.0))
    prices = Prices(book.rates(), per_megapixel_step=1.0)
    assert prices.gpu_seconds(work(images=3)) == pytest.approx(1.5)
    assert prices.gpu_seconds(work(steps=20)) == pytest.approx(1.0)
    other = Workload("another model", 1000, 1000, 5, guided=True, images=2)
    assert prices.gpu_seconds(other) == pytest.approx(10.0)
    assert Prices(per_megapixel_step=2.0).gpu_seconds(other) == pytest.approx(20.0)


def test_the_steps_that_run_are_what_the_cost_counts() -> None:
    def asked(run: int, guidance_scale: float = 5.0) -> Workload:
        return work_of(
            model="m",
            width=64,
            height=64,
            guidance_scale=guidance_scale,
            images=3,
            cost=64 * 64 * run * 3,
        )

    assert (asked(5).steps, asked(10).steps) == (5, 10)
    assert asked(10).guided
    assert not asked(10, guidance_scale=1.0).guided


def test_what_was_never_made_is_scaled_from_what_was() -> None:
    known = snapshot(finished(2.0))
    assert known.row_seconds(work(), GPU) == pytest.approx(2.0)
    assert known.row_seconds(work(steps=20), GPU) == pytest.approx(4.0)
    assert known.row_seconds(work(width=128), GPU) == pytest.approx(4.0)
    assert known.row_seconds(work(), "another GPU") is None


def test_only_workers_that_can_begin_now_count() -> None:
    known = snapshot(finished(2.0))
    found = servers(known, rows_of([worker(), worker(rows=2)], "m"), work())
    assert found is not None
    assert found.rows == 6
    assert found.row_seconds == pytest.approx(2.0)
    cold = ModelStatus.model_validate({"name": "m", "state": "cold"})
    for nobody in (worker(state="draining"), worker(models=(cold,)), worker(device="other")):
        assert servers(known, rows_of([nobody], "m"), work()) is None


def load(**ahead: float) -> Load:
    return Load.model_validate({"model": "m", "queue_class": "interactive", **ahead})


def point(ahead: Load, *, images: int = 1, rows: int = 4, age: float = 0.0) -> float:
    known = snapshot(finished(2.0))
    asked = work(images=images)
    found = servers(known, rows_of([worker(rows=rows)], "m"), asked)
    assert found is not None
    return estimate_queued(known, found, asked, ahead, age=age).point


def test_a_free_row_means_no_wait() -> None:
    cost = work().cost
    assert point(load()) == pytest.approx(2.0)
    assert point(load(running_images=3, running_cost=3 * cost)) == pytest.approx(2.0)


def test_many_images_take_turns() -> None:
    assert point(load(), images=4) == pytest.approx(2.0)
    assert point(load(), images=5) == pytest.approx(4.0)


def test_the_queue_is_waited_for() -> None:
    cost = work().cost
    busy = load(running_images=4, running_cost=4 * cost)
    assert point(busy) == pytest.approx(1.0 + 2.0)  # half of what runs is left
    queued = busy.plus(8, 8 * cost)
    assert point(queued) == pytest.approx(1.0 + 4.0 + 2.0)
    assert point(queued, age=2.0) == pytest.approx(3.0 + 2.0)
    assert point(queued, rows=8) < point(queued)


def test_a_position_is_that_share_of_the_queue() -> None:
    ahead = load(queued_jobs=10, queued_images=40, queued_cost=4000.0).before(5)
    assert (ahead.queued_images, ahead.queued_cost) == (20, 2000.0)


def test_bulk_work_waits_for_interactive_work() -> None:
    queue_classes = tuple(
        Load(model="m", queue_class=queue_class, queued_jobs=1, queued_images=1, queued_cost=1.0)
        for queue_class in ("interactive", "bulk")
    )
    known = snapshot(finished(2.0), loads=queue_classes)
    assert known.load("m", "interactive").queued_jobs == 1
    assert known.load("m", "bulk").queued_jobs == 2


def test_a_running_job_gets_nearer_its_end() -> None:
    known = snapshot(finished(2.0))
    found = servers(known, rows_of([worker()], "m"), work())
    assert found is not None
    half = estimate_running(known, found, work(), fraction=0.5, left_of_promise=9.0)
    assert half.point == pytest.approx(1.0)
    waiting = estimate_running(known, found, work(), fraction=0.0, left_of_promise=9.0)
    assert waiting.point == pytest.approx(9.0)


def test_the_conformal_rank() -> None:
    assert quantile(range(1, 100), 0.9) == 90
    assert quantile(range(1, 10), 0.9) == 9
    assert quantile([3.0], 0.5) == 3.0


@pytest.mark.parametrize("bias", [0.4, 1.0, 3.0])
def test_quantiles_cover_what_they_say_however_wrong_the_model_is(bias: float) -> None:
    random_ = random.Random(7)
    calibration = Calibration()
    told = []
    for job in range(1200):
        factors = next(iter(calibration.factors()), None)
        p50, p90 = (factors.p50, factors.p90) if factors else (1.0, 1.5)
        truth = bias * random_.lognormvariate(0, 0.4)
        estimate = DurationEstimate(1.0, p50, p90, waits=False)
        calibration.learn([EstimateOutcome("m", estimate, truth)])
        if job >= 200:
            told.append((truth <= p50, truth <= p90))
    assert sum(hit for hit, _ in told) / len(told) == pytest.approx(0.5, abs=0.06)
    assert sum(hit for _, hit in told) / len(told) == pytest.approx(0.9, abs=0.04)
    quality = calibration.quality()
    assert quality is not None
    assert quality.covered_p90 == pytest.approx(0.9, abs=0.08)
    assert 0 < quality.relative_error < 1


def test_an_estimate_survives_the_database() -> None:
    estimate = DurationEstimate(1.5, 1.6, 2.5, waits=True)
    assert DurationEstimate.from_json(estimate.as_json()) == estimate


def test_what_was_done_while_jobs_waited_counts_more_than_what_should_be_possible() -> None:
    meter = ThroughputMeter()
    for waiting in (5, 5, 0, 5, *[5] * 20):
        meter.observe(1.0, {"m": (2, 100.0)}, {"m": waiting}, {"m": 4})
    (seen,) = meter.throughputs()
    assert seen.cost_per_second == pytest.approx(100.0)
    known = snapshot(finished(2.0)).model_copy(update={"throughputs": (seen,)})
    assert known.throughput("m", rows=8) == pytest.approx(200.0)
    found = servers(known, {GPU: 4}, work())
    assert found is not None
    assert found.cost_per_second == pytest.approx(100.0)


def test_an_idle_time_is_no_evidence_of_speed() -> None:
    meter = ThroughputMeter()
    for _ in range(50):
        meter.observe(1.0, {"m": (2, 100.0)}, {"m": 0}, {"m": 4})
    assert meter.throughputs() == ()


# --- What a process has accepted since the last snapshot, added up as it comes ---


def test_what_a_snapshot_has_counted_is_forgotten() -> None:
    accepted = Acceptances()
    for at in range(10):
        accepted.add(float(at), images=2, cost=100.0)
    accepted.drop_until(6.0)
    assert (accepted.images, accepted.cost) == (6, 300.0)
    accepted.drop_until(99.0)
    assert (accepted.images, accepted.cost) == (0, 0.0)


def test_without_snapshots_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_REMEMBERED", 3)
    accepted = Acceptances()
    for at in range(10):
        accepted.add(float(at), images=1, cost=10.0)
    assert (accepted.images, accepted.cost) == (3, 30.0)

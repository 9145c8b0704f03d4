"""What the doctor says of a queue: when it is well, and what to do when it is not."""

from datetime import UTC, datetime

import pytest

from darkroom import QueueDepth, Worker, WorkerModel
from darkroom.cli.queue_checks import judge_queue
from darkroom.types import Drain


def queue(lane: str = "interactive", queued: int = 3, age: float | None = 600.0) -> QueueDepth:
    return QueueDepth(model="sd21", lane=lane, queued=queued, running=2, oldest_age_seconds=age)


def worker(state: str, model: str = "sd21", model_state: str = "warm") -> Worker:
    drain = Drain(requested_at=datetime(2026, 1, 31, tzinfo=UTC)) if state == "draining" else None
    models = (WorkerModel(name=model, state=model_state),)
    return Worker(name="gpu-7", kind="gpu", state=state, models=models, drain=drain)


@pytest.mark.parametrize("workers", [None, []], ids=["unknown", "none"])
def test_a_queue_is_well_while_nobody_waits_long(workers: list[Worker] | None) -> None:
    for each in (queue(queued=0, age=None), queue(age=5.0)):
        check = judge_queue(each, workers, moves=False)
        assert (check.state, check.advice) == ("ok", None)
    told = judge_queue(queue(age=5.0), workers, moves=False).finding
    assert told == "sd21, interactive: 3 waiting, the oldest for 5.0 s, 2 running"


@pytest.mark.parametrize(
    ("workers", "moves", "advice"),
    [
        ([], False, "python -m worker generate --model sd21"),
        ([worker("ready", "other")], False, "python -m worker generate --model sd21"),
        ([worker("ready", model_state="broken")], False, "python -m worker generate --model sd21"),
        ([worker("faulty")], False, "python -m worker generate --model sd21"),
        ([worker("draining")], True, "darkroom workers resume gpu-7"),
        ([worker("ready")], False, "nothing runs"),
        ([worker("draining"), worker("busy")], True, "another worker"),
        (None, False, "Redis is away"),
    ],
)
def test_where_the_oldest_waits_long_it_says_what_to_do(
    workers: list[Worker] | None, moves: bool, advice: str
) -> None:
    check = judge_queue(queue(), workers, moves=moves)
    assert check.state == "warning"
    assert advice in (check.advice or "")
    assert "oldest for 10 min" in check.finding


def test_bulk_jobs_may_wait_as_long_as_their_model_is_at_work() -> None:
    assert judge_queue(queue("bulk"), [worker("busy")], moves=True).state == "ok"
    assert judge_queue(queue("bulk"), [worker("ready")], moves=False).state == "warning"
    assert judge_queue(queue("bulk"), [], moves=True).state == "warning"

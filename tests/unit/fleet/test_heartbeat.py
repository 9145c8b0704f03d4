"""What follows from what a worker says of itself."""

from datetime import UTC, datetime

import pytest

from shared.core.worker_registry import ModelState, ModelStatus, WorkerHeartbeat, WorkerState


def announced(state: WorkerState, model: ModelState) -> WorkerHeartbeat:
    models = (ModelStatus(name="demo", state=model),)
    return WorkerHeartbeat(name="w1", state=state, models=models, started_at=datetime.now(UTC))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (WorkerState.WARMING, True),
        (WorkerState.READY, True),
        (WorkerState.BUSY, True),
        (WorkerState.DRAINING, False),
        (WorkerState.FAULTY, False),
    ],
)
def test_a_worker_that_leaves_serves_nothing(state: WorkerState, expected: bool) -> None:
    assert announced(state, ModelState.WARM).serves("demo") is expected


def test_a_model_that_cannot_be_loaded_is_not_served() -> None:
    assert not announced(WorkerState.READY, ModelState.BROKEN).serves("demo")
    assert announced(WorkerState.READY, ModelState.WARM).serves("demo")
    assert not announced(WorkerState.READY, ModelState.WARM).serves("other")

"""Bulk jobs never take the last threads."""

import pytest
from celery import Celery

from worker.core.queues import BulkSlots, QueueGates, bulk_limit

BULK, OTHER, FAST = "generate.m.bulk", "generate.n.bulk", "generate.m.interactive"


@pytest.mark.parametrize(
    ("threads", "rows", "bulk"), [(15, 4, 10), (6, 1, 4), (27, 8, 18), (2, 1, 1), (3, 8, 2)]
)
def test_a_reserve_is_left_for_interactive_jobs(threads: int, rows: int, bulk: int) -> None:
    assert bulk_limit(threads, rows) == bulk
    assert 1 <= bulk < threads


def test_bulk_queues_are_left_out_while_no_slot_is_free() -> None:
    app = Celery("slots", broker="memory://", set_as_current=False)
    slots, intake = BulkSlots(2), QueueGates()
    slots.attach(intake)
    intake.attach(app)
    order = app.conf.broker_transport_options["queue_order_strategy"]([BULK, FAST, OTHER])
    assert order.consume(3) == [FAST, BULK, OTHER]
    slots.take("a")
    slots.take("a")  # delivered twice, held once
    assert order.consume(3) == [FAST, BULK, OTHER]
    slots.take("b")
    assert order.consume(3) == [FAST]
    slots.free("unknown")
    assert order.consume(3) == [FAST]
    slots.free("a")
    assert order.consume(3) == [FAST, BULK, OTHER]

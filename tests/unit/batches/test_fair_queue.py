"""Whose turn it is: keys share, batches take turns, priorities and costs count."""

from collections import Counter
from uuid import UUID, uuid4

import pytest
from celery import Celery

from shared.batches.state import ACTIVE_STATES, TERMINAL_STATES, BatchState, end_state
from worker.core.queues import BulkSlots, ConsumeFilters, bulk_limit
from worker.maintenance.bulk_enqueuer import BatchSource, FairQueue


def source(key: str, jobs: int, priority: int = 5, cost: int = 1) -> BatchSource:
    made = BatchSource(uuid4(), key, priority)
    made.waiting.extend((uuid4(), cost) for _ in range(jobs))
    return made


def feed(turns: FairQueue, count: int) -> list[BatchSource]:
    """The sources of the next jobs."""
    order: list[BatchSource] = []
    for _ in range(count):
        chosen = turns.next_source(lambda _: None)
        if chosen is None:
            break
        turns.take(chosen)
        order.append(chosen)
    return order


def test_a_small_key_does_not_wait_for_a_large_one() -> None:
    large, small, other = source("large", 900), source("small", 50), source("other", 50)
    turns = FairQueue()
    turns.update([large, small, other])
    assert Counter(s.key for s in feed(turns, 150)) == {"large": 50, "small": 50, "other": 50}


def test_a_key_has_one_share_however_many_batches_it_has() -> None:
    turns = FairQueue()
    turns.update([*(source("many", 100) for _ in range(9)), source("one", 100)])
    assert Counter(s.key for s in feed(turns, 100)) == {"many": 50, "one": 50}


def test_batches_of_one_key_take_turns() -> None:
    a, b = source("k", 10), source("k", 10)
    turns = FairQueue()
    turns.update([a, b])
    order = feed(turns, 6)
    assert {order[0], order[1]} == {a, b}
    assert order[:2] * 3 == order


def test_a_higher_priority_goes_first_within_its_key_only() -> None:
    late, early, other = source("k", 5), source("k", 5, priority=9), source("x", 10)
    turns = FairQueue()
    turns.update([late, early, other])
    order = [s for s in feed(turns, 20) if s.key == "k"]
    assert order == [early] * 5 + [late] * 5
    assert len(order) == 10


def test_shares_are_of_work_and_not_of_jobs() -> None:
    turns = FairQueue()
    turns.update([source("heavy", 100, cost=4), source("light", 100)])
    counted = Counter(s.key for s in feed(turns, 50))
    assert counted == {"heavy": 10, "light": 40}


def test_who_comes_later_starts_even_and_idling_earns_nothing() -> None:
    turns = FairQueue()
    first, idle = source("first", 200), source("idle", 0)
    turns.update([first, idle])
    feed(turns, 100)
    idle.waiting.extend((uuid4(), 1) for _ in range(100))
    late = source("late", 100)
    turns.update([first, idle, late])
    assert Counter(s.key for s in feed(turns, 30)) == {"first": 10, "idle": 10, "late": 10}


def test_an_empty_source_is_loaded_when_its_turn_comes() -> None:
    job = uuid4()
    empty = source("k", 0)
    turns = FairQueue()
    turns.update([empty])

    def load(wanted: BatchSource) -> None:
        wanted.waiting.append((job, 1))

    chosen = turns.next_source(load)
    assert chosen is empty
    assert turns.take(chosen) == job


def test_a_known_source_keeps_what_was_read() -> None:
    known = source("k", 3)
    known.position = UUID(int=7)
    turns = FairQueue()
    turns.update([known])
    turns.update([BatchSource(known.batch_id, "k", 9)])
    assert turns.sources() == [known]
    assert known.priority == 9
    turns.update([])
    assert turns.sources() == []


# --- Bulk jobs never take the last threads ---


BULK, OTHER, FAST = "generate.m.bulk", "generate.n.bulk", "generate.m.interactive"


@pytest.mark.parametrize(
    ("threads", "rows", "bulk"), [(15, 4, 10), (6, 1, 4), (27, 8, 18), (2, 1, 1), (3, 8, 2)]
)
def test_a_reserve_is_left_for_interactive_jobs(threads: int, rows: int, bulk: int) -> None:
    assert bulk_limit(threads, rows) == bulk
    assert 1 <= bulk < threads


def test_bulk_queues_are_left_out_while_no_slot_is_free() -> None:
    app = Celery("slots", broker="memory://", set_as_current=False)
    slots, intake = BulkSlots(2), ConsumeFilters()
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


# --- How a batch ends follows from how its jobs ended ---


@pytest.mark.parametrize(
    ("counts", "skipped", "canceled", "state"),
    [
        ({"succeeded": 3}, 0, False, "succeeded"),
        ({"succeeded": 3}, 1, False, "partial"),
        ({"succeeded": 3, "failed": 1}, 0, False, "partial"),
        ({"succeeded": 3, "canceled": 1}, 0, False, "partial"),
        ({"succeeded": 3, "canceled": 1}, 0, True, "canceled"),
        ({"succeeded": 3}, 0, True, "succeeded"),
        ({"failed": 1, "expired": 5}, 0, False, "failed"),
        ({"expired": 5}, 0, False, "expired"),
        ({"canceled": 5}, 0, False, "canceled"),
        ({"canceled": 5}, 0, True, "canceled"),
    ],
)
def test_end_states(counts: dict[str, int], skipped: int, canceled: bool, state: str) -> None:
    ended = end_state(counts, skipped_lines=skipped, cancel_requested=canceled)
    assert ended == state
    assert ended in TERMINAL_STATES


def test_every_state_has_its_place() -> None:
    assert set(BatchState) == TERMINAL_STATES | ACTIVE_STATES | {BatchState.VALIDATING}

"""Whose turn it is: keys share, batches take turns, priorities and costs count."""

from collections import Counter
from uuid import UUID, uuid4

from worker.maintenance.bulk_enqueuer import FairTurns, Source


def source(key: str, jobs: int, priority: int = 5, cost: int = 1) -> Source:
    made = Source(uuid4(), key, priority)
    made.waiting.extend((uuid4(), cost) for _ in range(jobs))
    return made


def feed(turns: FairTurns, count: int) -> list[Source]:
    """The sources of the next jobs."""
    order: list[Source] = []
    for _ in range(count):
        chosen = turns.next_source(lambda _: None)
        if chosen is None:
            break
        turns.take(chosen)
        order.append(chosen)
    return order


def test_a_small_key_does_not_wait_for_a_large_one() -> None:
    large, small, other = source("large", 900), source("small", 50), source("other", 50)
    turns = FairTurns()
    turns.update([large, small, other])
    assert Counter(s.key for s in feed(turns, 150)) == {"large": 50, "small": 50, "other": 50}


def test_a_key_has_one_share_however_many_batches_it_has() -> None:
    turns = FairTurns()
    turns.update([*(source("many", 100) for _ in range(9)), source("one", 100)])
    assert Counter(s.key for s in feed(turns, 100)) == {"many": 50, "one": 50}


def test_batches_of_one_key_take_turns() -> None:
    a, b = source("k", 10), source("k", 10)
    turns = FairTurns()
    turns.update([a, b])
    order = feed(turns, 6)
    assert {order[0], order[1]} == {a, b}
    assert order[:2] * 3 == order


def test_a_higher_priority_goes_first_within_its_key_only() -> None:
    late, early, other = source("k", 5), source("k", 5, priority=9), source("x", 10)
    turns = FairTurns()
    turns.update([late, early, other])
    order = [s for s in feed(turns, 20) if s.key == "k"]
    assert order == [early] * 5 + [late] * 5
    assert len(order) == 10


def test_shares_are_of_work_and_not_of_jobs() -> None:
    turns = FairTurns()
    turns.update([source("heavy", 100, cost=4), source("light", 100)])
    counted = Counter(s.key for s in feed(turns, 50))
    assert counted == {"heavy": 10, "light": 40}


def test_who_comes_later_starts_even_and_idling_earns_nothing() -> None:
    turns = FairTurns()
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
    turns = FairTurns()
    turns.update([empty])

    def load(wanted: Source) -> None:
        wanted.waiting.append((job, 1))

    chosen = turns.next_source(load)
    assert chosen is empty
    assert turns.take(chosen) == job


def test_a_known_source_keeps_what_was_read() -> None:
    known = source("k", 3)
    known.position = UUID(int=7)
    turns = FairTurns()
    turns.update([known])
    turns.update([Source(known.batch_id, "k", 9)])
    assert turns.sources() == [known]
    assert known.priority == 9
    turns.update([])
    assert turns.sources() == []

"""Whose turn it is: interactive before bulk, first come first served, sizes by device time."""

import itertools
from dataclasses import dataclass, field

from worker.engine.admission import Admission
from worker.engine.backend import Shape
from worker.engine.interface import Lane

SMALL = Shape(64, 64, guided=True, rows=2)
LARGE = Shape(128, 128, guided=True, rows=2)

_arrivals = itertools.count()


@dataclass(eq=False)
class Waiting:
    shape: Shape = SMALL
    lane: Lane = "interactive"
    started: bool = False
    arrival: int = field(default_factory=lambda: next(_arrivals))


def admitted(*entries: Waiting, exclusive: bool = False) -> Admission[Waiting]:
    admission: Admission[Waiting] = Admission(exclusive=exclusive)
    for entry in entries:
        admission.add(entry)
    return admission


def chosen(admission: Admission[Waiting]) -> tuple[Waiting, ...]:
    batch = admission.choose()
    return batch.entries if batch is not None else ()


def test_nobody_waits() -> None:
    assert admitted().choose() is None


def test_the_first_two_fill_two_rows() -> None:
    first, second, third = Waiting(), Waiting(), Waiting()
    assert chosen(admitted(first, second, third)) == (first, second)


def test_interactive_rows_go_before_bulk_rows_that_came_earlier() -> None:
    bulk, other_bulk = Waiting(lane="bulk"), Waiting(lane="bulk")
    interactive = Waiting()
    assert chosen(admitted(bulk, other_bulk, interactive)) == (interactive, bulk)


def test_a_bulk_row_that_must_wait_counts_as_paused_once() -> None:
    bulk, other_bulk = Waiting(lane="bulk"), Waiting(lane="bulk")
    admission = admitted(bulk, other_bulk)
    admission.choose()
    newcomer = Waiting()
    admission.add(newcomer)
    assert chosen(admission) == (newcomer, bulk)
    admission.choose()
    assert admission.pauses == 1
    admission.remove(newcomer)
    assert chosen(admission) == (bulk, other_bulk)


def test_an_interactive_row_of_another_size_keeps_bulk_from_the_device() -> None:
    bulk, interactive = Waiting(SMALL, "bulk"), Waiting(LARGE)
    admission = admitted(bulk, interactive)
    admission.charge(LARGE, 100.0)
    assert chosen(admission) == (interactive,)


def test_sizes_share_the_device_by_time_not_by_ticks() -> None:
    small, large = Waiting(SMALL), Waiting(LARGE)
    admission = admitted(small, large)
    turns = []
    for _ in range(50):
        (entry,) = chosen(admission)
        turns.append(entry)
        admission.charge(entry.shape, 4.0 if entry is large else 1.0)
    assert turns.count(small) == 40


def run(admission: Admission[Waiting], ticks: int) -> list[Waiting]:
    """Who had the turns of so many ticks of a second each."""
    turns = []
    for _ in range(ticks):
        entry = chosen(admission)[0]
        turns.append(entry)
        admission.charge(entry.shape, 1.0)
    return turns


def test_a_size_that_was_idle_does_not_get_the_past_repaid() -> None:
    small, large = Waiting(SMALL), Waiting(LARGE)
    admission = admitted(small)
    run(admission, 1000)
    admission.add(large)
    assert run(admission, 10).count(small) == 5


def test_bulk_of_a_size_that_waited_for_other_sizes_leaves_no_debt_to_its_interactive_images() -> (
    None
):
    bulk, small = Waiting(LARGE, "bulk"), Waiting(SMALL)
    admission = admitted(bulk, small)
    assert run(admission, 1000).count(small) == 1000
    large = Waiting(LARGE)
    admission.add(large)
    assert [entry.shape for entry in run(admission, 10)].count(SMALL) in (4, 5)


def test_a_size_whose_images_come_one_by_one_gets_its_half_and_no_more() -> None:
    small = Waiting(SMALL)
    admission = admitted(small)
    run(admission, 100)
    served = 0
    for _ in range(20):
        guest = Waiting(LARGE)
        admission.add(guest)
        served += run(admission, 2).count(guest)
        admission.remove(guest)
    assert served == 20


def test_an_exclusive_backend_ends_what_it_started() -> None:
    started, interactive = Waiting(lane="bulk", started=True), Waiting()
    assert chosen(admitted(started, interactive, exclusive=True)) == (started,)

"""Whose turn it is: interactive before bulk, first come first served, sizes by device time."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from worker.engine.backend import Shape
from worker.engine.batch_composer import BatchComposer
from worker.engine.interface import QueueClass

SMALL = Shape(64, 64, batch_size=2)
LARGE = Shape(128, 128, batch_size=2)

_arrivals = itertools.count()


@dataclass(eq=False)
class Waiting:
    shape: Shape = SMALL
    queue_class: QueueClass = "interactive"
    started: bool = False
    arrival: int = field(default_factory=lambda: next(_arrivals))


def admitted(*entries: Waiting, **how: Any) -> BatchComposer[Waiting]:
    composer: BatchComposer[Waiting] = BatchComposer(**how)
    for entry in entries:
        composer.add(entry)
    return composer


def chosen(composer: BatchComposer[Waiting]) -> tuple[Waiting, ...]:
    batch = composer.choose()
    return batch.entries if batch is not None else ()


def test_nobody_waits() -> None:
    assert admitted().choose() is None


def test_the_first_two_fill_two_rows() -> None:
    first, second, third = Waiting(), Waiting(), Waiting()
    assert chosen(admitted(first, second, third)) == (first, second)


def test_interactive_rows_go_before_bulk_rows_that_came_earlier() -> None:
    bulk, other_bulk = Waiting(queue_class="bulk"), Waiting(queue_class="bulk")
    interactive = Waiting()
    assert chosen(admitted(bulk, other_bulk, interactive)) == (interactive, bulk)


def test_a_bulk_row_that_must_wait_counts_as_paused_once() -> None:
    bulk, other_bulk = Waiting(queue_class="bulk"), Waiting(queue_class="bulk")
    composer = admitted(bulk, other_bulk)
    composer.choose()
    newcomer = Waiting()
    composer.add(newcomer)
    assert chosen(composer) == (newcomer, bulk)
    composer.choose()
    assert composer.pauses == 1
    composer.remove(newcomer)
    assert chosen(composer) == (bulk, other_bulk)


def test_an_interactive_row_of_another_size_keeps_bulk_from_the_device() -> None:
    bulk, interactive = Waiting(SMALL, "bulk"), Waiting(LARGE)
    composer = admitted(bulk, interactive)
    composer.charge(LARGE, 100.0)
    assert chosen(composer) == (interactive,)


def test_sizes_share_the_device_by_time_not_by_ticks() -> None:
    small, large = Waiting(SMALL), Waiting(LARGE)
    composer = admitted(small, large)
    turns = []
    for _ in range(50):
        (entry,) = chosen(composer)
        turns.append(entry)
        composer.charge(entry.shape, 4.0 if entry is large else 1.0)
    assert turns.count(small) == 40


def run(composer: BatchComposer[Waiting], ticks: int) -> list[Waiting]:
    """Who had the turns of so many ticks of a second each."""
    turns = []
    for _ in range(ticks):
        entry = chosen(composer)[0]
        turns.append(entry)
        composer.charge(entry.shape, 1.0)
    return turns


def test_a_size_that_was_idle_does_not_get_the_past_repaid() -> None:
    small, large = Waiting(SMALL), Waiting(LARGE)
    composer = admitted(small)
    run(composer, 1000)
    composer.add(large)
    assert run(composer, 10).count(small) == 5


def test_bulk_of_a_size_that_waited_for_other_sizes_leaves_no_debt_to_its_interactive_images() -> (
    None
):
    bulk, small = Waiting(LARGE, "bulk"), Waiting(SMALL)
    composer = admitted(bulk, small)
    assert run(composer, 1000).count(small) == 1000
    large = Waiting(LARGE)
    composer.add(large)
    assert [entry.shape for entry in run(composer, 10)].count(SMALL) in (4, 5)


def test_a_size_whose_images_come_one_by_one_gets_its_half_and_no_more() -> None:
    small = Waiting(SMALL)
    composer = admitted(small)
    run(composer, 100)
    served = 0
    for _ in range(20):
        guest = Waiting(LARGE)
        composer.add(guest)
        served += run(composer, 2).count(guest)
        composer.remove(guest)
    assert served == 20


def test_an_exclusive_backend_ends_what_it_started() -> None:
    started, interactive = Waiting(queue_class="bulk", started=True), Waiting()
    assert chosen(admitted(started, interactive, exclusive=True)) == (started,)


def test_an_image_of_another_variant_waits_for_no_whole_image() -> None:
    one, other = (Shape(64, 64, batch_size=1, variant=guided) for guided in (True, False))
    first, bulk = Waiting(one), Waiting(one, queue_class="bulk")
    second = Waiting(other)
    composer = admitted(first, bulk, second, most=lambda _: 4)
    made = []
    for _ in range(2):
        batch = composer.choose()
        assert batch is not None
        made.append(batch.entries)
        composer.charge(batch.shape, 1.0)
    assert made == [(first, bulk), (second,)]


def test_at_more_rows_variants_take_turns_also_where_each_text_has_its_own() -> None:
    first, second = (Waiting(Shape(64, 64, batch_size=2, variant=(n,))) for n in (9, 17))
    composer = admitted(first, second, variant_per_text=True)
    made = []
    for _ in range(3):
        batch = composer.choose()
        assert batch is not None
        made.append(batch.entries)
        composer.charge(batch.shape, 1.0)
    assert made == [(first,), (second,), (first,)]


def test_bulk_rows_slow_no_image_down_that_another_waits_for() -> None:
    one, other = (Shape(64, 64, batch_size=1, variant=(length,)) for length in (9, 17))
    first, beside = Waiting(one), Waiting(one)
    bulk, second = Waiting(one, queue_class="bulk"), Waiting(other)
    how: dict[str, Any] = {"most": lambda _: 4, "variant_per_text": True}
    assert chosen(admitted(first, beside, bulk, second, **how)) == (first, beside)
    assert chosen(admitted(first, beside, bulk, **how)) == (first, beside, bulk)


def test_at_one_row_variants_of_a_size_come_in_their_order() -> None:
    """Where each text has a shape of its own, images must not crawl side by side."""
    first = Waiting(Shape(64, 64, batch_size=1, variant=(9,)))
    second = Waiting(Shape(64, 64, batch_size=1, variant=(17,)))
    composer = admitted(first, second, variant_per_text=True)
    for _ in range(3):
        batch = composer.choose()
        assert batch is not None
        assert (batch.entries, batch.shape) == ((first,), first.shape)
        composer.charge(batch.shape, 1.0)
    assert composer.members(second.shape) == (second,)
    composer.remove(first)
    assert chosen(composer) == (second,)

"""A worker looks at interactive queues first, and models take turns."""

from shared.core.broker import InteractiveFirst, generate_queue


def queues(*pairs: tuple[str, str]) -> list[str]:
    return [generate_queue(model, queue_class) for model, queue_class in pairs]


def test_interactive_comes_before_bulk_whatever_the_names() -> None:
    cycle = InteractiveFirst()
    cycle.update({*queues(("a", "bulk"), ("z", "interactive"), ("m", "bulk"))})
    assert cycle.consume(3) == queues(("z", "interactive"), ("a", "bulk"), ("m", "bulk"))


def test_a_model_that_was_served_goes_behind_the_others_of_its_queue_class() -> None:
    cycle = InteractiveFirst()
    cycle.update(queues(("a", "interactive"), ("b", "interactive"), ("a", "bulk")))
    cycle.rotate(generate_queue("a", "interactive"))
    assert cycle.consume(3) == queues(("b", "interactive"), ("a", "interactive"), ("a", "bulk"))


def test_a_queue_that_is_no_longer_consumed_leaves() -> None:
    cycle = InteractiveFirst()
    cycle.update(queues(("a", "interactive"), ("a", "bulk")))
    cycle.update(queues(("a", "interactive")))
    cycle.rotate("unknown")
    assert cycle.consume(2) == queues(("a", "interactive"))

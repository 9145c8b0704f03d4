"""Which models stay loaded: the limit, who makes room, and who may not."""

import threading
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec
from shared.core.worker_registry import ModelState
from tests.processes import wait_until
from worker.engine.interface import Engine, ModelFacts
from worker.models.cache import ModelCache, ModelNotWarm


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loaded:
    """What the residency sees of an engine."""

    allocated_bytes = None
    loras: ClassVar[dict[str, str]] = {}

    def __init__(self, spec: ModelSpec, rows: int) -> None:
        self.model = ModelFacts(
            name=spec.name,
            content_hash=f"hash of {spec.name}",
            revision=None,
            family="simulated",
            dtype="float32",
            device="a device",
            batch_size=spec.max_batch_size or rows,
            memory_bytes=100,
        )
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Shelf:
    """Residents over fake engines."""

    def __init__(self, *models: str, limit: int | None, stay: float = 10.0) -> None:
        self.clock = Clock()
        self.started: list[ModelSpec] = []
        self.broken: set[str] = set()
        self.residents = ModelCache(
            [ModelSpec(name=name, source="simulated:memory=100") for name in models],
            self._start,
            limit=limit,
            stay=stay,
            clock=self.clock,
        )

    def _start(self, spec: ModelSpec) -> Engine:
        if spec.name in self.broken:
            raise ModelUnavailable("it cannot be opened")
        self.started.append(spec)
        self.clock.now += 1.0  # a load takes a second
        return cast("Engine", Loaded(spec, rows=len(self.started)))

    @property
    def states(self) -> dict[str, str]:
        return {model.name: str(model.state) for model in self.residents.status()}


def test_without_a_limit_everything_is_loaded() -> None:
    shelf = Shelf("a", "b", "c", limit=None)
    shelf.residents.load_first()
    assert set(shelf.states.values()) == {"warm"}
    assert shelf.residents.cold == []


def test_as_many_as_fit_are_loaded_in_order_and_the_first_in_any_case() -> None:
    shelf = Shelf("a", "b", "c", limit=250)
    shelf.residents.load_first()
    assert shelf.states == {"a": "warm", "b": "warm", "c": "cold"}
    tight = Shelf("a", "b", limit=1)
    tight.residents.load_first()
    assert tight.states == {"a": "warm", "b": "cold"}


def test_only_queues_of_warm_models_are_open() -> None:
    shelf = Shelf("a", "b", limit=100)
    shelf.residents.load_first()
    assert shelf.residents.accepts("generate.a.bulk")
    assert not shelf.residents.accepts("generate.b.interactive")
    assert not shelf.residents.accepts("generate.elsewhere.interactive")
    with pytest.raises(ModelNotWarm), shelf.residents.use("b"):
        pass
    with pytest.raises(ModelUnavailable), shelf.residents.use("elsewhere"):
        pass


def test_the_least_recently_used_makes_room() -> None:
    shelf = Shelf("a", "b", "c", limit=200)
    shelf.residents.load_first()
    shelf.clock.now += 100
    with shelf.residents.use("a"):
        pass
    victims = shelf.residents.eviction_candidates("c")
    assert victims == ["b"]
    assert shelf.residents.load("c", victims)
    assert shelf.states == {"a": "warm", "b": "cold", "c": "warm"}
    assert shelf.residents.used_bytes == 200


def test_a_model_stays_for_a_while_longer_where_it_has_work() -> None:
    shelf = Shelf("a", "b", limit=100, stay=10)
    shelf.residents.load_first()
    shelf.clock.now += 1.5
    assert (
        shelf.residents.eviction_candidates("b") is None
    )  # twice the second that its loading took
    shelf.clock.now += 1
    assert shelf.residents.eviction_candidates("b") == ["a"]
    assert shelf.residents.eviction_candidates("b", wanted={"a"}) is None
    shelf.clock.now += 10
    assert shelf.residents.eviction_candidates("b", wanted={"a"}) == ["a"]


def test_a_model_in_use_is_unloaded_after_its_last_job_and_takes_no_other() -> None:
    shelf = Shelf("a", "b", limit=100)
    shelf.residents.load_first()
    shelf.clock.now += 100
    engine = cast("Loaded", shelf.residents.engines["a"])
    loading = threading.Thread(target=shelf.residents.load, args=("b", ["a"]))
    with shelf.residents.use("a"):
        loading.start()
        wait_until(lambda: shelf.states["a"] == ModelState.RETIRING, 10)
        assert not shelf.residents.accepts("generate.a.interactive")
        assert not engine.closed
        with shelf.residents.use("a"):  # its message was on its way
            pass
        assert shelf.states["b"] == "cold"
    loading.join(10)
    assert engine.closed
    assert shelf.states == {"a": "cold", "b": "warm"}


def test_rows_are_those_of_the_first_time() -> None:
    """A warm-up that measured anew might choose others, and with them other bytes."""
    shelf = Shelf("a", "b", limit=100)
    shelf.residents.load_first()
    for name, victims in (("b", ["a"]), ("a", ["b"])):
        shelf.clock.now += 100
        assert shelf.residents.load(name, victims)
    assert [(spec.name, spec.max_batch_size) for spec in shelf.started] == [
        ("a", None),
        ("b", None),
        ("a", 1),
    ]
    (again, _) = shelf.residents.status()
    assert (again.batch_size, again.family) == (1, "simulated")


def test_one_that_cannot_be_loaded_is_broken_and_tried_again_ever_later() -> None:
    shelf = Shelf("a", "b", limit=100)
    shelf.residents.load_first()
    shelf.broken.add("b")
    pauses = []
    for _ in range(9):
        assert not shelf.residents.load("b", ["a"])
        assert shelf.states["b"] == "broken"
        failed_at = shelf.clock.now
        assert shelf.residents.cold == ["a"]
        while "b" not in shelf.residents.cold:
            shelf.clock.now += 60
        pauses.append(shelf.clock.now - failed_at)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    shelf.broken.clear()
    assert shelf.residents.load("b", [])
    assert shelf.states["b"] == "warm"


def test_each_change_is_told() -> None:
    shelf = Shelf("a", "b", limit=100)
    told: list[dict[str, Any]] = []
    tell: Callable[[], None] = lambda: told.append(shelf.states)  # noqa: E731
    shelf.residents.changed = tell
    shelf.residents.load_first()
    shelf.residents.load("b", ["a"])
    assert [states["a"] for states in told] == [
        "warming",
        "warm",
        "retiring",
        "cold",
        "cold",
        "cold",
    ]


def test_closing_ends_the_wait_for_a_job() -> None:
    shelf = Shelf("a", "b", limit=100)
    shelf.residents.load_first()
    loading = threading.Thread(target=shelf.residents.load, args=("b", ["a"]))
    with shelf.residents.use("a"):
        loading.start()
        wait_until(lambda: shelf.states["a"] == ModelState.RETIRING, 10)
        shelf.residents.close()
        loading.join(10)
        assert not loading.is_alive()
    assert shelf.states["b"] == "cold"

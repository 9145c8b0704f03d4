"""Batches are as large as there are rows, where it is proven that no bit depends on their size."""

import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.engine.concurrency import make_alone, make_among_others
from tests.unit.engine.families import DIFFUSION_TOYS, TOYS, Toy
from tests.unit.engine.faulty import FaultyDevice, out_of_memory
from tests.unit.engine.reference import reference
from tests.unit.engine.test_controls import control
from tests.unit.engine.toys import (
    long_but,
    open_backend,
    request,
    toy_backend,
    toy_engine,
    toy_folder,
    toy_spec,
)
from tests.unit.engine.turns import submit_together
from worker.engine.backend import Shape
from worker.engine.batched_backend import BatchedBackend
from worker.engine.device import Device, open_device
from worker.engine.network import NetworkOverBuffers

LIMIT = 120.0
MOST = 4
ALL = {toy.name: toy for toy in (*DIFFUSION_TOYS, *TOYS.values())}


@pytest.fixture(autouse=True)
def pieces_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy's take longer than its sums."""
    monkeypatch.setattr("worker.engine.agreement._TOO_SLOW", 100.0)


def warmed(name: str, device: Device | None = None, **changes: Any) -> BatchedBackend:
    """A backend after its warm-up, not shared with other tests."""
    spec = toy_spec(name, **{"max_batch_size": MOST, "default_guidance_scale": 5.0, **changes})
    backend = open_backend(spec, device or open_device("cpu"))
    backend.warm_up()
    return backend


@pytest.mark.long
@pytest.mark.parametrize("name", long_but(["sd15"], ALL))
def test_a_row_has_the_bits_of_its_base_in_batches_of_any_size(name: str) -> None:
    toy, random = ALL[name], Random(name)
    backend = warmed(name, **toy.spec)
    computed: set[int] = set()
    _note_sizes(backend, computed)
    for image_request in _requests(toy):
        alone = make_alone(backend, image_request)
        if backend._model.base == 1:
            expected = reference(toy_folder(name)).latents(
                image_request, toy.arguments(image_request)
            )
            assert torch.equal(alone.latents, expected), image_request
        for _ in range(3):
            crowded = make_among_others(
                backend, image_request, random, toy.schedulers, toy.from_images
            )
            assert torch.equal(crowded.latents, alone.latents), image_request
            assert np.array_equal(crowded.pixels, alone.pixels), image_request
    assert backend._model.base is None or len(computed) > 1


def _requests(toy: Toy) -> list[Any]:
    scheduler = toy.schedulers[0]
    guided = request(scheduler=scheduler, guidance_scale=toy.guidance, steps=5)
    requests = [guided, request(scheduler=scheduler, guidance_scale=toy.unguided, seed=8, width=96)]
    if toy.from_images:
        from tests.proof.test_one_row import START

        requests.append(
            request(
                scheduler=scheduler, guidance_scale=toy.guidance, init_image=START, strength=0.8
            )
        )
    return requests


def _note_sizes(backend: BatchedBackend, computed: set[int]) -> None:
    tick = backend._model.tick

    def noted(shape: Any, rows: Any) -> int:
        count = tick(shape, rows)
        computed.add(count)
        return count

    backend._model.tick = noted  # type: ignore[method-assign]


def _depends_on_size(network: Any, beyond: int) -> str:
    """Make one module give other bits for more elements than these."""
    name, module = next(
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    )

    class Broken(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made = super().forward(x)
            return made * 1.0001 if len(x) > beyond else made

    module.__class__ = Broken
    return name


def _prove(backend: BatchedBackend, image_request: Any) -> None:
    shape = backend.shape_of(image_request)
    backend._model.prove(shape, backend.prepare(image_request, shape)[0], 60.0)


def _broken(change: Callable[[BatchedBackend], object]) -> BatchedBackend:
    backend = open_backend(toy_spec("sd15", max_batch_size=MOST), open_device("cpu"))
    change(backend)
    backend.warm_up()
    return backend


def test_a_module_that_depends_on_the_size_is_computed_in_pieces() -> None:
    name = ""

    def change(backend: BatchedBackend) -> None:
        nonlocal name
        name = _depends_on_size(backend._family.network, beyond=4)

    backend = _broken(change)
    _prove(backend, request(width=96))
    _prove(backend, request(width=96, guidance_scale=1.0))
    assert len(backend._model._agreements) == 4  # the warm-up: guided and not
    guided = [shape for shape, _ in backend._model._agreements if shape.variant == (True, 1)]
    assert [shape.width for shape in guided] == [64, 96]
    for shape in guided:
        known = backend._model._agreements[shape, False]
        assert known.sizes == (1, 2, 3, 4), shape
        assert {count for (module, _), count in known.pieces.items() if module == name} == {4}
    image_request = request()
    alone = make_alone(backend, image_request)
    assert np.array_equal(alone.pixels, reference(toy_folder("sd15")).pixels(image_request))
    crowded = make_among_others(backend, image_request, Random(1), ("dpmpp-2m",))
    assert torch.equal(crowded.latents, alone.latents)


@pytest.mark.long
@pytest.mark.parametrize(
    ("differs", "base", "largest"), [((3, 4), 1, 2), ((2, 3, 4), None, 4), ((1,), 2, 4)]
)
def test_sizes_that_differ_beyond_repair_are_not_used(
    differs: tuple[int, ...], base: int | None, largest: int
) -> None:
    """By what no module does: then a class of sizes, or the fixed size with padding."""

    def change(backend: BatchedBackend) -> None:
        forward = backend._family.forward

        def other(network: Any, inputs: Any, shape: Any) -> torch.Tensor:
            made = forward(network, inputs, shape)
            count = len(inputs["sample"]) // 2
            # Each of these sizes in its own way, but for those beyond 1.
            return made * (1 + 0.001 * count) if count in differs else made

        backend._family.forward = other  # type: ignore[method-assign]

    backend = _broken(change)
    assert (backend._model.base, backend.model.batch_size) == (base, largest)
    image_request = request()
    alone = make_alone(backend, image_request)
    crowded = make_among_others(backend, image_request, Random(2), ("dpmpp-2m",))
    assert torch.equal(crowded.latents, alone.latents)
    shape = backend.shape_of(image_request)
    assert shape.batch_size == (base or largest)


@pytest.mark.long
def test_rows_with_nets_share_no_batch_of_a_size_that_was_proven_without() -> None:
    backend = warmed("sd15")
    if backend._model.base != 1:
        pytest.skip("no sizes agree here")
    assert backend.most(backend.shape_of(request())) == MOST
    asked = request(controls=(control("sd15"),))
    shape = backend.shape_of(asked)
    rows = [backend.prepare(replace(asked, seed=seed), shape)[0] for seed in (1, 2)]
    for _ in range(2):  # once measured, what nobody has compared would be
        backend.tick(shape, rows)()
    assert backend.facts(rows[0], shape, ()).agreeing_sizes == (1,)
    assert backend.most(shape) == 1


@pytest.mark.long
def test_an_image_of_an_earlier_fixed_size_is_reproduced() -> None:
    backend = warmed("sd15")
    if backend._model.base != 1:
        pytest.skip("no sizes agree here")
    fixed = make_alone(toy_backend("sd15", MOST), request())
    again = request(batch_size=MOST)
    assert torch.equal(make_alone(backend, again).latents, fixed.latents)
    crowded = make_among_others(backend, again, Random(3), ("dpmpp-2m",))
    assert torch.equal(crowded.latents, fixed.latents)


@pytest.mark.long
def test_an_image_of_another_number_of_threads_is_reproduced() -> None:
    two, one = toy_engine("sd15", cpu_threads=2), toy_engine("sd15")
    for engine in (one, two):
        engine.warm_up()
    expected = two.submit(request()).future.result(LIMIT)
    tickets = [one.submit(request(seed=seed)) for seed in range(3)]
    made = one.submit(request(cpu_threads=2)).future.result(LIMIT)
    others = [ticket.future.result(LIMIT) for ticket in tickets]
    for engine in (one, two):
        engine.close()
    torch.set_num_threads(1)  # MKL has one number for all threads of a process
    assert (made.facts.cpu_threads, expected.facts.cpu_threads) == (2, 2)
    assert {image.facts.cpu_threads for image in others} == {1}
    assert np.array_equal(made.pixels, expected.pixels)


@pytest.mark.long
def test_fewer_rows_that_fit_have_the_same_bits() -> None:
    engine: Any = None

    def fault(kind: str, result: Any) -> Any:
        if kind == "tick" and engine is not None and len(result) > 2 * 2:
            raise out_of_memory()
        return result

    made = toy_engine("sd15", FaultyDevice(fault), max_batch_size=MOST)
    made.warm_up()
    backend: Any = made._backend
    base = backend._model.base
    alone = [made.submit(request(seed=seed)).future.result(LIMIT) for seed in range(6)]
    engine = made
    tickets = submit_together(made, [request(seed=seed) for seed in range(6)])
    images = [ticket.future.result(LIMIT) for ticket in tickets]
    made.close()
    if base != 1:
        pytest.skip("no sizes agree here")
    assert engine.counters.out_of_memory_shrinks == 1
    for image, expected in zip(images, alone, strict=True):
        assert np.array_equal(image.pixels, expected.pixels)
        assert image.facts.batch_size == 1


@pytest.mark.long
def test_every_size_of_the_warm_up_is_proven_and_run_at_its_largest() -> None:
    largest: set[int] = set()

    def fault(kind: str, result: Any) -> Any:
        if kind == "tick":
            largest.add(len(result))
        return result

    backend = warmed("sd15", FaultyDevice(fault), warm_sizes=((64, 64), (96, 64)))
    known = backend._model._agreements
    assert {(shape.width, shape.variant) for shape, _ in known} == {
        (width, (guided, 1)) for width in (64, 96) for guided in (True, False)
    }
    guided = {one.sizes for (shape, _), one in known.items() if shape.variant == (True, 1)}
    assert guided == {(1, 2, 3, 4)}
    assert max(largest) == 2 * MOST


class Noting(Device):
    """A CPU that notes what it does."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.kinds: list[str] = []

    def run(self, kind: Any, work: Callable[[], Any]) -> Any:
        self.kinds.append(kind)
        return super().run(kind, work)


@pytest.mark.long
def test_a_proof_that_would_take_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.model._LIVE_PROOF", 0.0)
    device = Noting()
    backend = warmed("sd15", device)
    device.kinds.clear()
    make_among_others(backend, request(width=96), Random(4), ("dpmpp-2m",))
    assert "tick" in device.kinds
    assert "prove" not in device.kinds


@pytest.mark.long
def test_a_live_proof_says_that_it_is_alive_and_the_next_comes_later() -> None:
    engine = toy_engine("sd15", Noting(), max_batch_size=MOST, default_guidance_scale=7.5)
    engine.warm_up()
    backend: Any = engine._backend
    device, watchdog = backend._device, engine._watchdog
    restarts, restart = 0, watchdog.restart
    device.kinds.clear()

    def counted() -> None:
        nonlocal restarts
        if device.kinds[-1:] == ["prove"]:
            restarts += 1
        restart()

    engine._ticks._alive = counted
    for width in (96, 128):
        asked = [request(width=width, steps=6, seed=seed) for seed in range(3)]
        for ticket in submit_together(engine, asked):
            ticket.future.result(LIMIT)
    engine.close()
    assert device.kinds.count("prove") == 1
    assert restarts > 10


@pytest.mark.long
def test_a_proof_that_fails_costs_no_image(caplog: pytest.LogCaptureFixture) -> None:
    live = False

    def fault(kind: str, result: Any) -> Any:
        if live and kind == "prove":
            raise RuntimeError("mat1 and mat2 do not fit")
        return result

    backend = warmed("sd15", FaultyDevice(fault))
    live = True
    image_request = request(width=96)
    alone = make_alone(backend, image_request)
    shape = backend.shape_of(image_request)
    rows = [backend.prepare(request(width=96, seed=seed), shape)[0] for seed in (1, 2)]
    backend._model.took(shape, 1, 0.001)
    backend.tick(shape, rows)()
    assert [row.error for row in rows] == [None, None]
    assert backend._model.proven_sizes(shape) == (1,)
    assert "no batch size was proven" in caplog.text
    assert torch.equal(make_alone(backend, image_request).latents, alone.latents)


def test_what_clients_ask_for_is_forgotten_and_what_was_warmed_is_not() -> None:
    backend = warmed("sd15", max_batch_size=2)
    model: Any = backend._model
    warm = dict(model._agreements)
    known = next(iter(warm.values()))
    for width in range(1, 200):
        model._remember((Shape(width, 64, 1), False), known)
    assert len(model._agreements) == 64 + len(warm)
    assert warm.keys() < model._agreements.keys()
    assert (Shape(199, 64, 1), False) in model._agreements


@pytest.mark.long
def test_pieces_are_found_where_graphs_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph calls no module; a frozen copy of the network stands for its kernels."""

    class Graph:
        def __init__(self, call: Any, size: int) -> None:
            self.call, self.size, self.frozen = call, size, copy.deepcopy(call.network)
            self.output = call.run_eagerly(size).clone()

        def replay(self) -> None:
            inputs = self.call._batch(self.size)
            self.output.copy_(self.call._family.forward(self.frozen, inputs, self.call._shape))

    def capture(call: Any, size: int) -> Any:
        graph = Graph(call, size)
        return graph, graph.output

    monkeypatch.setattr(NetworkOverBuffers, "_capture", capture)
    made = NetworkOverBuffers.__init__

    def with_graphs(self: Any, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        self._use_graph = True

    monkeypatch.setattr(NetworkOverBuffers, "__init__", with_graphs)
    backend = _broken(lambda made: _depends_on_size(made._family.network, beyond=4))
    known = backend._model._agreements[backend.shape_of(request()), False]
    assert known.sizes == (1, 2, 3, 4)
    assert known.pieces

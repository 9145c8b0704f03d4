"""Which batch sizes leave a row's bits alone: proven where they are used, and not assumed.

A kernel may sum in another order in a larger batch. So rows are computed at a base size and beside
random neighbours at others, and sizes with the same bits may stand for each other: a batch then is
as large as there are rows, and each image has the bytes that it has alone. Where a few modules
disagree with a row alone, those are computed piece by piece.
"""

import copy
import dataclasses
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from worker.engine.row import Row, Tensors

if TYPE_CHECKING:
    from worker.engine.network import NetworkOverBuffers

PieceKey = tuple[str, tuple[int, ...]]
"""A module's name, and the shape of one element of its input."""

_TOO_SLOW = 1.5
"""Pieces are given up where they take this many times as long as the batch at once."""


@dataclass(frozen=True)
class Agreement:
    """What is known of one shape."""

    sizes: tuple[int, ...]
    """Ascending: batch sizes at which a row has the same bits, the shape's own among them."""
    pieces: Mapping[PieceKey, int] = field(default_factory=dict)
    """How many elements some modules compute at once, for that."""

    def fitting(self, rows: int) -> int:
        """The size to compute this many rows at: the next one, or the largest."""
        return next((size for size in self.sizes if size >= rows), self.sizes[-1])


class Chunking:
    """The modules of a network that compute some shapes piece by piece."""

    def __init__(self) -> None:
        self._active: Mapping[PieceKey, int] = {}

    @contextmanager
    def during(self, pieces: Mapping[PieceKey, int]) -> Iterator[None]:
        """Let these pieces hold while the block runs."""
        self._active = pieces
        try:
            yield
        finally:
            self._active = {}

    def piece(self, name: str, x: torch.Tensor) -> int:
        """How many elements of x the module computes at once."""
        return self._active.get((name, tuple(x.shape[1:])), len(x))

    def install(self, network: torch.nn.Module, names: Sequence[str]) -> None:
        """Make modules ask before they compute. Copies of the network keep to copies of them."""
        for name in names:
            module = network.get_submodule(name)
            if "forward" not in vars(module):
                module.chunking, module.chunking_name = self, name  # type: ignore[assignment]
                module.forward = types.MethodType(_in_pieces, module)


def without_chunking(network: torch.nn.Module) -> torch.nn.Module:
    """A copied network that computes in one piece, and that nothing keeps alive but who holds it: a
    module that asks refers to itself."""
    for module in network.modules():
        if "chunking" in vars(module):
            del module.forward, module.chunking, module.chunking_name
    return network


def _in_pieces(module: Any, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
    whole = type(module).forward
    count = module.chunking.piece(module.chunking_name, x)
    if len(x) <= count:
        return whole(module, x, *args, **named)
    return torch.cat([whole(module, part, *args, **named) for part in torch.split(x, count)])


def prove(
    calls: Sequence["NetworkOverBuffers"],
    row: Row,
    *,
    base: int,
    sizes: Sequence[int],
    chunking: Chunking | None,
    seconds: float,
    row_seconds: float | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Agreement:
    """Compare rows like this one at these batch sizes with the same rows at the base.

    Args:
        calls: the network's calls in one tick, with room for the largest size.
        chunking: None: no module is to be computed piece by piece.
        seconds: what the proof may take, roughly; if that is too little, less or nothing is proven.
        row_seconds: what a row takes at the base; None: that is measured.
        alive: called after each piece of the work.
    """
    deadline = time.monotonic() + seconds
    trial = _Trial(calls, row, max(sizes), alive)
    if row_seconds is None:
        trial.seconds(base, {}, time.perf_counter)  # allocation and kernel choice
        row_seconds = trial.seconds(base, {}, time.perf_counter) / base
    sizes = affordable(sizes, base, row_seconds, seconds)
    if sizes == (base,):
        return Agreement(sizes)
    largest = max(sizes)
    trial.keep(largest)
    expected, pieces = trial.outputs(base, {}), dict[PieceKey, int]()
    if chunking is not None and not _equal(trial.outputs(largest, {}), expected):
        pieces = trial.find_pieces(chunking, base, sizes)
        clock = calls[0].device.clock  # which a busy machine does not change
        at_once = trial.seconds(largest, {}, clock)
        if trial.seconds(largest, pieces, clock) > _TOO_SLOW * at_once:
            pieces = {}
    alike = [base]
    for size in sorted(sizes, key=lambda size: (size.bit_count() != 1, size)):
        if time.monotonic() > deadline:
            break  # a busy machine: what is proven by now
        if size != base and _equal(trial.outputs(size, pieces), expected):
            alike.append(size)
    return Agreement(tuple(sorted(alike)), pieces if len(alike) > 1 else {})


def affordable(
    sizes: Sequence[int], base: int, row_seconds: float, budget: float
) -> tuple[int, ...]:
    """All sizes, or those that double, or fewer and fewer of those, down to the base alone. A row
    in a batch takes less than alone, the search for pieces about as long as two sizes."""
    some = list(sizes)
    while some != [base]:
        if row_seconds * max(some) * (len(some) + 3) <= budget:
            break
        doubled = [size for size in some if size == base or size.bit_count() == 1]
        some = doubled if len(doubled) < len(some) else some[:-1]
    return tuple(some)


def _equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


class _Trial:
    """Rows of one kind with random contents, computed at any batch size."""

    def __init__(
        self,
        calls: Sequence["NetworkOverBuffers"],
        row: Row,
        count: int,
        alive: Callable[[], None],
    ) -> None:
        self._calls, self._device, self._alive = calls, calls[0].device, alive
        self._rows = list(_varied_rows(row, calls, count))

    def keep(self, count: int) -> None:
        """So many rows are enough."""
        self._rows = self._rows[:count]

    def outputs(self, size: int, pieces: Mapping[PieceKey, int]) -> list[torch.Tensor]:
        """Of all rows, for each call, this many rows at a time."""
        outputs = []
        for index, call in enumerate(self._calls):
            parts = []
            for begin in range(0, len(self._rows), size):
                # The last ones have the first beside them.
                order = [(begin + slot) % len(self._rows) for slot in range(size)]
                self._fill(index, order)
                count = min(size, len(self._rows) - begin) * len(call.halves)
                parts.append(call.run(size, pieces)[:count].clone())
                self._device.mark().wait()
                self._alive()
            outputs.append(torch.cat(parts))
        return outputs

    def seconds(
        self, size: int, pieces: Mapping[PieceKey, int], clock: Callable[[], float]
    ) -> float:
        """The better time of two for one batch."""
        times = []
        for index in range(len(self._calls)):
            self._fill(index, range(size))
        for _ in range(2):
            begin = clock()
            for call in self._calls:
                call.run(size, pieces).flatten()[0].item()  # waits for the device
                self._alive()
            times.append(clock() - begin)
        return min(times)

    def find_pieces(
        self, chunking: Chunking, base: int, sizes: Sequence[int]
    ) -> dict[PieceKey, int]:
        """The modules that disagree with the base size, and up to which size they do not."""
        pieces: dict[PieceKey, int] = {}
        doubled = [size for size in sizes if size == max(sizes) or size.bit_count() == 1]
        for index, call in enumerate(self._calls):
            self._fill(index, range(max(sizes)))
            elements, alive = len(call.halves), self._alive
            with _observed(call.network, elements, base, doubled, pieces, alive=alive):
                call.run_eagerly(max(sizes))  # a graph replays its kernels and calls no module
        chunking.install(self._calls[0].network, [name for name, _ in pieces])
        return pieces

    def _fill(self, index: int, order: Sequence[int]) -> None:
        call = self._calls[index]
        call.fill(
            (place, self._rows[number][index][half])
            for slot, number in enumerate(order)
            for half, place in enumerate(call.places(slot))
        )


def _varied_rows(
    row: Row, calls: Sequence["NetworkOverBuffers"], count: int
) -> Iterator[list[list[Tensors]]]:
    """For each call and each of its halves what the network reads: the row's own, then others."""
    # The one in flight is not to notice.
    row = dataclasses.replace(row, scheduler=copy.deepcopy(row.scheduler))
    own = [[call.inputs_of(row, half) for half in call.halves] for call in calls]
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        yield (
            own
            if number == 0
            else [[_varied(tensors, generator) for tensors in halves] for halves in own]
        )


def _varied(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Other numbers of the same kind; whole ones say lengths and masks, and stay."""
    varied = {}
    for name, value in tensors.items():
        if not value.is_floating_point():
            varied[name] = value
        elif value.numel() == 1:
            varied[name] = value * torch.rand(1, generator=generator).item()
        else:
            noise = torch.randn(value.shape, generator=generator).to(value.device)
            spread = value.float().std().nan_to_num() or 1.0
            varied[name] = torch.empty_like(value).copy_(noise * spread + value.float().mean())
    return varied


@contextmanager
def _observed(
    network: torch.nn.Module,
    elements: int,
    base: int,
    sizes: Sequence[int],
    pieces: dict[PieceKey, int],
    *,
    alive: Callable[[], None],
) -> Iterator[None]:
    """While the block runs one batch, compute each module's input at all sizes, and continue with
    what the base size gives. Modules that an earlier proof made ask are observed, too."""
    leaves = [
        (name, module, vars(module).get("forward"))
        for name, module in network.named_modules()
        if not any(True for _ in module.children())
        and ("forward" not in vars(module) or "chunking" in vars(module))
    ]
    count = max(sizes) * elements

    def at(module: Any, x: torch.Tensor, size: int) -> torch.Tensor:
        return torch.cat(
            [type(module).forward(module, part) for part in torch.split(x, size * elements)]
        )

    def observe(name: str) -> Any:
        def forward(module: Any, *args: Any, **named: Any) -> Any:
            result = type(module).forward(module, *args, **named)
            alive()
            if (
                len(args) != 1
                or named
                or not all(_is_batch(each, count) for each in (*args, result))
            ):
                return result
            x = args[0]
            expected, agreed = at(module, x, base), base
            for size in sizes:
                if size > base and not torch.equal(at(module, x, size), expected):
                    key = (name, tuple(x.shape[1:]))
                    pieces[key] = min(agreed * elements, pieces.get(key, count))
                    break
                agreed = max(agreed, size)
            return expected

        return forward

    for name, module, _ in leaves:
        module.forward = types.MethodType(observe(name), module)
    try:
        yield
    finally:
        for _, module, asking in leaves:
            if asking is None:
                del module.forward
            else:
                module.forward = asking


def _is_batch(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 1 and len(value) == count

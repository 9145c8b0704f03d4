"""One call of a family's network over fixed buffers: eager, as a CUDA graph, or compiled."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from worker.engine.agreement import Chunking, PieceKey
from worker.engine.backend import Shape
from worker.engine.controls import Residuals, residuals_of
from worker.engine.families.base import Family, Pass
from worker.engine.row import Half, Row, Tensors

logger = logging.getLogger(__name__)

Compile = Literal["off", "graphs", "inductor"]
"""A model's `compile` switch."""

_COMPILED_SHAPES = 128


class NetworkOverBuffers:
    """The network with one set of buffers as its only inputs.

    A row's halves lie beside each other, so that the first rows of the buffers are a batch, and a
    piece of it holds the same elements as a smaller batch.
    """

    def __init__(
        self,
        family: Family,
        shape: Shape,
        halves: Pass,
        how: Compile,
        *,
        channels_last: bool,
        capacity: int | None = None,
        chunking: Chunking | None = None,
    ) -> None:
        """
        Args:
            channels_last: the layout of images among the inputs, and so of convolutions.
            capacity: rows of the largest batch; None: the shape's own size.
            chunking: who knows which modules compute piece by piece.
        """
        self.halves = halves
        self._family = family
        self.device = family.device
        self._shape = shape
        self._capacity = capacity or shape.batch_size
        self._chunking = chunking or Chunking()
        self._channels_last = channels_last
        self._constants = family.constants(shape)
        self._inputs: dict[str, Any] = {}
        self.network = family.network
        if how != "off" and not family.capturable:
            logger.warning("compile = %s does not suit the family %s", how, family.name)
            how = "off"
        self.how: Compile = how
        """How it runs, after all."""
        if how == "inductor":
            import torch._dynamo

            # Each warmed shape is a compilation of the same code.
            config = torch._dynamo.config
            config.recompile_limit = max(config.recompile_limit, _COMPILED_SHAPES)
            self.network = torch.compile(self.network, fullgraph=True, dynamic=False)
        on_cuda = self.device.torch_device.type == "cuda"
        self._use_graph = how == "graphs" and on_cuda
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        if how == "graphs" and not on_cuda:
            self.how = "off"
            logger.warning("compile = graphs needs a CUDA device; running eagerly")

    def residuals(self, rows: Sequence[tuple[Row, int]], size: int) -> Residuals | None:
        """What the ControlNets of these rows, each with its slot, add in this tick."""
        controlled = [(row, self.places(slot)) for row, slot in rows if row.controls]
        elements = size * len(self.halves)
        return residuals_of(self._family, self._batch(size), controlled, elements)

    def places(self, slot: int) -> list[int]:
        """The batch elements of a row's halves."""
        first = slot * len(self.halves)
        return list(range(first, first + len(self.halves)))

    def inputs_of(self, row: Row, half: Half) -> Tensors:
        """All that the network reads of a row now."""
        return {
            **row.conditions[half],
            **self._family.dynamic(row, row.timesteps[row.calls]),
        }

    def fill(self, entries: Iterable[tuple[int, Tensors]]) -> None:
        """Copy tensors (1, …) to their elements; those from the host in one transfer each."""
        staged: dict[str, torch.Tensor] = {}
        for index, tensors in entries:
            for name, value in tensors.items():
                buffer = self._buffer(name, value)
                if value.device == buffer.device:
                    buffer[index].copy_(value[0])
                    continue
                if name not in staged:
                    staged[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
                staged[name][index] = value[0]
        for name, host in staged.items():
            self._inputs[name].copy_(self.device.from_host(host), non_blocking=True)

    def run(
        self,
        size: int | None = None,
        pieces: Mapping[PieceKey, int] | None = None,
        residuals: Residuals | None = None,
    ) -> torch.Tensor:
        """The network's output for the first rows, (n, …); valid until the next run.

        Args:
            size: how many rows; None: all.
            pieces: what some modules compute at once; always the same, or none.
            residuals: what ControlNets add; a graph has no place for them.
        """
        if residuals is not None:
            batch = self._batch(size or self._capacity)
            return self._family.controlled(self.network, batch, residuals)
        size, key = size or self._capacity, (size or self._capacity, bool(pieces))
        with self._chunking.during(pieces or {}):
            if not self._use_graph:
                return self.run_eagerly(size)
            if key not in self._graphs:
                self._graphs[key] = self._capture(size)
        graph, output = self._graphs[key]
        graph.replay()
        return output

    def run_eagerly(self, size: int) -> torch.Tensor:
        """As `run`, by the modules themselves and not by a graph of them."""
        return self._family.forward(self.network, self._batch(size), self._shape)

    def _batch(self, size: int) -> Tensors:
        count = size * len(self.halves)
        return {
            **self._constants,
            **{name: buffer[:count] for name, buffer in self._inputs.items()},
        }

    def _buffer(self, name: str, value: torch.Tensor) -> torch.Tensor:
        buffer = self._inputs.get(name)
        if buffer is None:
            count = self._capacity * len(self.halves)
            on_host = name in self._family.host_inputs
            device = "cpu" if on_host else self.device.torch_device
            buffer = torch.zeros(count, *value.shape[1:], dtype=value.dtype, device=device)
            if self._channels_last and buffer.dim() == 4:
                buffer = buffer.to(memory_format=torch.channels_last)
            self._inputs[name] = buffer
        return buffer

    def _capture(self, size: int) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """Record one call, so that a tick costs the host one launch instead of a thousand.

        A few runs on a side stream come first, as capturing demands.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.run_eagerly(size)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: another model's engine may allocate meanwhile. One pool for all: a
        # tick has read its outputs, on the same stream, before another shape's graph is replayed.
        pool = self.device.graph_pool
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self.run_eagerly(size)
        return graph, output

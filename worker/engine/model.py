"""A loaded model as rows see it: prepare, tick, decode, over the buffers of many shapes."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from worker.engine.adapters import Adapters, applied_to_encoders
from worker.engine.agreement import Agreement, Chunking, affordable, prove
from worker.engine.backend import Shape
from worker.engine.batch import TickBatch
from worker.engine.controls import ControlNet, RowControl, scales_of
from worker.engine.families.base import Family
from worker.engine.interface import Control, ImageRequest
from worker.engine.network import Compile
from worker.engine.row import Row
from worker.engine.schedules import tables_on_host

logger = logging.getLogger(__name__)

_LIVE_PROOF = 5.0
"""Seconds for which other images may have to wait,"""
_BETWEEN_PROOFS = 60.0
"""and how long none has to wait after that, whatever shapes clients ask for."""

_KNOWN_SHAPES = 64
"""Shapes of which it stays known what agrees, in addition to those of the warm-up."""

_IDLE_SHAPES = 8
"""Shapes whose buffers stay for the next image of their size."""


class Model:
    """One pipeline on one device, in one precision."""

    def __init__(self, family: Family, compile_: Compile = "off") -> None:
        self.family = family
        self.device = family.device
        self.dtype = str(family.dtype).removeprefix("torch.")
        self._compile: Compile = compile_
        self._batches: OrderedDict[Shape, TickBatch] = OrderedDict()
        self._agreements: OrderedDict[tuple[Shape, bool], Agreement] = OrderedDict()
        """By shape, and by whether images are laid out channels-last; the latest last."""
        self._next_proof = 0.0
        """When jobs may be held up by a proof again."""
        self.alive: Callable[[], None] = lambda: None
        """Called when a piece of a long tick has ended."""
        self._chunking = Chunking()
        self.base: int | None = None
        """The batch size whose bits rows have at any size that agrees with it; None: not proven."""
        self.largest = 1
        """Rows of the largest batch at that base."""
        self._kept: frozenset[tuple[Shape, bool]] = frozenset()
        self._warmed: set[Shape] = set()

    def shape(self, request: ImageRequest, rows: int) -> Shape:
        """The shape at this many rows."""
        variant = self.family.variant(request, rows)
        weights = request.loras or request.controls or request.references
        eager = bool(weights) and self._compile != "off"
        alone = rows == self.base and bool(request.controls)
        return Shape(request.width, request.height, rows, variant, eager, alone)

    def prepare(
        self,
        request: ImageRequest,
        shape: Shape,
        adapters: Adapters = (),
        nets: Sequence[ControlNet] = (),
    ) -> Row:
        """Encode the texts, set the timesteps, draw the latents: all before the first tick.

        `nets` are those of the request's controls.
        """
        if request.upscaler == "latent" and request.init_image is not None:
            latents = self.family.upscaled_image(request)
            request = replace(request, init_image=None, init_latents=latents)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        passes = self.family.passes(shape)
        halves = [half for call in passes for half in call]
        for adapter, _ in adapters:
            adapter.move(self.device.torch_device, self.family.encode_device)
        with applied_to_encoders(self.family, request.loras, adapters):
            conditions = {half: self.family.conditions(request, half, shape) for half in halves}
        # Before the latents: some nets want their image encoded, which draws noise.
        encoding = self.family.control_generator(request, generator)
        seen = [
            self._condition(net, control, request, encoding, len(passes[0]))
            for net, control in zip(nets, request.controls, strict=True)
        ]
        start = self.family.start(request, generator)
        kept = start.kept and replace(start.kept, tables=tables_on_host(start.scheduler))
        conditions = {half: {**known, **start.conditions} for half, known in conditions.items()}
        return Row(
            request=request,
            scheduler=start.scheduler,
            step_options=start.step_options,
            timesteps=start.timesteps,
            steps=start.steps,
            latents=start.latents,
            conditions=conditions,
            adapters=adapters,
            references=self.family.attended(request, halves=len(halves)),
            controls=tuple(
                RowControl(net, condition, scales_of(control, len(start.timesteps)))
                for net, condition, control in zip(nets, seen, request.controls, strict=True)
            ),
            kept=kept,
            dtype=self.dtype,
        )

    def _condition(
        self,
        net: ControlNet,
        control: Control,
        request: ImageRequest,
        generator: torch.Generator,
        halves: int,
    ) -> torch.Tensor:
        """What a net sees, for each half of a call."""
        net.network.to(self.device.torch_device)
        seen = self.family.control_condition(net.network, control.image, request, generator)
        return torch.cat([seen] * halves) if len(seen) < halves else seen

    def tick(self, shape: Shape, rows: Sequence[Row]) -> int:
        return self._batch(shape).tick(rows)

    def _batch(self, shape: Shape) -> TickBatch:
        batch = self._batches.get(shape)
        if batch is None:
            self._drop_idle(_IDLE_SHAPES)
            batch = TickBatch(
                shape,
                self.family,
                self.compiled(shape),
                capacity=self._most(shape),
                chunking=self._chunking,
                agree=lambda channels_last, row, rows: self._agree(shape, channels_last, row, rows),
            )
            self._batches[shape] = batch
        self._batches.move_to_end(shape)
        return batch

    def took(self, shape: Shape, computed: int, seconds: float) -> None:
        """Record how long a tick of this many rows took."""
        if shape in self._batches and computed:
            self._batches[shape].row_seconds = seconds / computed

    def sizes(self, shape: Shape) -> tuple[int, ...]:
        """The batch sizes to hope for: those that are proven, or may be proven now."""
        known = self._agreements.get((shape, False))
        return known.sizes if known else self._to_prove(shape)

    def is_known(self, shape: Shape) -> bool:
        """Whether it is known which sizes agree."""
        return (shape, False) in self._agreements

    def proven_sizes(self, shape: Shape) -> tuple[int, ...]:
        """The batch sizes at which rows are known to have the bits that they have at its own."""
        known = self._agreements.get((shape, False))
        return known.sizes if known else (shape.batch_size,)

    def _most(self, shape: Shape) -> int:
        shares = shape.batch_size == self.base and not shape.alone
        return max(self.largest, shape.batch_size) if shares else 0

    def _candidates(self, shape: Shape) -> tuple[int, ...]:
        """On a GPU only those that double: each may have a graph of its own."""
        on_cpu = self.device.torch_device.type == "cpu"
        return tuple(
            size
            for size in range(shape.batch_size, self._most(shape) + 1)
            if on_cpu or size in (shape.batch_size, self.largest) or size.bit_count() == 1
        ) or (shape.batch_size,)

    def _to_prove(self, shape: Shape) -> tuple[int, ...]:
        """What there is time to prove between two ticks: the shape's own size alone until one of
        its ticks has been measured, and for a while after any proof."""
        batch = self._batches.get(shape)
        if batch is None or batch.row_seconds is None or time.monotonic() < self._next_proof:
            return (shape.batch_size,)
        candidates = self._candidates(shape)
        return affordable(candidates, shape.batch_size, batch.row_seconds, _LIVE_PROOF)

    def _agree(self, shape: Shape, channels_last: bool, row: Row, rows: int) -> Agreement:
        """What is known, or is proven now that rows want to share a batch: that takes as long as
        some ticks, once."""
        key = (shape, channels_last)
        if key in self._agreements:
            self._agreements.move_to_end(key)
            return self._agreements[key]
        if rows > 1 and len(self._to_prove(shape)) > 1:
            seconds = self._batches[shape].row_seconds
            try:
                return self.prove(shape, row, channels_last=channels_last, row_seconds=seconds)
            finally:
                self._next_proof = time.monotonic() + _BETWEEN_PROOFS
        return Agreement((shape.batch_size,))

    @torch.no_grad()
    def prove(
        self,
        shape: Shape,
        row: Row,
        seconds: float = _LIVE_PROOF,
        *,
        channels_last: bool = False,
        row_seconds: float | None = None,
    ) -> Agreement:
        """Compare batch sizes with the shape's own, on rows like this one, for about that long.

        What fails for whatever reason is not tried again, and costs no row its image.
        """
        calls = self._batch(shape).calls(channels_last)
        may_chunk = shape.batch_size == 1 and self._may_chunk
        chunking = self._chunking if may_chunk else None
        sizes = self._candidates(shape)
        try:
            known = self.device.run(
                "prove",
                lambda: prove(
                    calls,
                    row,
                    base=shape.batch_size,
                    sizes=sizes,
                    chunking=chunking,
                    seconds=seconds,
                    row_seconds=row_seconds,
                    alive=self.alive,
                ),
            )
        except Exception as error:
            if self.device.is_fatal(error):
                raise
            logger.warning("%s: no batch size was proven", shape, exc_info=error)
            self.device.release_memory()
            known = Agreement((shape.batch_size,))
        self._remember((shape, channels_last), known)
        logger.info("%s: batch sizes %s agree", shape, known.sizes)
        return known

    def _remember(self, key: tuple[Shape, bool], known: Agreement) -> None:
        self._agreements[key] = known
        self._agreements.move_to_end(key)
        asked = [key for key in self._agreements if key not in self._kept]
        for old in asked[: max(0, len(asked) - _KNOWN_SHAPES)]:
            del self._agreements[old]

    def keep_agreements(self) -> None:
        """What is known by now stays known, whatever clients ask for."""
        self._kept = frozenset(self._agreements)

    @property
    def _may_chunk(self) -> bool:
        """Compilers and offloading have their own ways through a module."""
        return self._compile != "inductor" and self.family.spec.offload == "none"

    def compiled(self, shape: Shape) -> Compile:
        """How the network runs at this shape: eagerly unless the shape was warmed."""
        return self._compile if shape in self._warmed else "off"

    def will_warm(self, shape: Shape) -> None:
        """Let this shape use graphs or compiled kernels: its first tick may take minutes."""
        self._warmed.add(shape)

    def free_buffers(self, shape: Shape) -> None:
        """Free a shape's buffers, and with them its graphs."""
        self._batches.pop(shape, None)
        self._warmed.discard(shape)

    def release_memory(self) -> None:
        """Free the buffers of shapes that nobody uses, and what torch keeps at hand."""
        self._drop_idle(0)
        self.device.release_memory()

    def close(self) -> None:
        """Free all buffers, which refer to the model, so that it is gone when its user lets go."""
        self._batches.clear()

    def leave(self, row: Row) -> None:
        for batch in self._batches.values():
            batch.leave(row)

    def _drop_idle(self, kept: int) -> None:
        """All but the latest; clients may ask for any size. Warmed shapes stay."""
        idle = [
            shape
            for shape, batch in self._batches.items()
            if batch.idle and shape not in self._warmed
        ]
        for shape in idle[: max(0, len(idle) - kept)]:
            self.free_buffers(shape)

"""One tick: the rows of a shape in their network calls, then each row's own scheduler step.

A shape has buffers with a slot for each row of its largest batch. The rows fill the first slots,
and the network computes as many as there are: the next size at which a row is known to have the
bits of the shape's own size (see `agreement`). Slots without a row are computed, too, and ignored.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import torch

from worker.engine.adapters import applied
from worker.engine.agreement import Agreement, Chunking
from worker.engine.backend import Shape
from worker.engine.controls import Residuals
from worker.engine.families.base import Family
from worker.engine.network import Compile, NetworkOverBuffers
from worker.engine.references import attending
from worker.engine.row import Prediction, Row, Tensors

Agree = Callable[[bool, Row, int], Agreement]
"""What is known where images are laid out channels-last, or not, for rows like this one, of which
this many are to share a batch."""


class Seats:
    """The buffers of one memory layout, and which row has which slot."""

    def __init__(self, calls: Sequence[NetworkOverBuffers]) -> None:
        self.calls = calls
        self.rows: list[Row | None] = []

    @property
    def taken(self) -> list[tuple[Row, int]]:
        """The rows with their slots."""
        return [(row, slot) for slot, row in enumerate(self.rows) if row is not None]

    def seat(self, rows: Sequence[Row]) -> None:
        """Give these rows the first slots; one that has such a slot keeps it."""
        seats = [row if row in rows else None for row in self.rows[: len(rows)]]
        seats += [None] * (len(rows) - len(seats))
        for row in rows:
            if row in seats:
                continue
            slot = seats.index(None)
            seats[slot] = row
            for call in self.calls:
                call.fill(
                    (index, row.conditions[half])
                    for half, index in zip(call.halves, call.places(slot), strict=True)
                )
        self.rows = seats


class TickBatch:
    """The buffers and slots of one shape."""

    def __init__(
        self,
        shape: Shape,
        family: Family,
        how: Compile,
        *,
        capacity: int | None = None,
        chunking: Chunking | None = None,
        agree: Agree | None = None,
    ) -> None:
        self._shape = shape
        self._family = family
        self._how: Compile = how
        self._device = family.device
        self._capacity = capacity or shape.batch_size
        self._chunking = chunking
        self._agree = agree or (lambda *_: Agreement((shape.batch_size,)))
        self._seats: dict[bool, Seats] = {}
        """By whether images are laid out channels-last."""
        self.row_seconds: float | None = None
        """What a row took in the last tick."""

    @property
    def idle(self) -> bool:
        return not any(row for seats in self._seats.values() for row in seats.rows)

    def tick(self, rows: Sequence[Row]) -> int:
        """Advance each row by one timestep; returns how many rows were computed for that."""
        inputs = {row: tensors for row in rows if (tensors := self._inputs(row)) is not None}
        # A failure stays with its row.
        computed = 0
        for channels_last in (False, True):
            alike = [row for row in inputs if self._is_channels_last(inputs[row]) == channels_last]
            agreement = self._agree(channels_last, alike[0], len(alike)) if alike else None
            while agreement is not None and alike:
                size = agreement.fitting(len(alike))
                together, alike = alike[:size], alike[size:]
                self._tick_together(self.seats(channels_last), together, inputs, size, agreement)
                computed += size
        return computed

    def leave(self, row: Row) -> None:
        """Free a row's slot."""
        for seats in self._seats.values():
            seats.rows = [None if each is row else each for each in seats.rows]

    def calls(self, channels_last: bool) -> list[NetworkOverBuffers]:
        """New buffers."""
        # That layout was not warmed: compiling for it would hold up a live tick for minutes.
        how: Compile = "off" if channels_last else self._how
        return [
            NetworkOverBuffers(
                self._family,
                self._shape,
                halves,
                how,
                channels_last=channels_last,
                capacity=self._capacity,
                chunking=self._chunking,
            )
            for halves in self._family.passes(self._shape)
        ]

    def seats(self, channels_last: bool) -> Seats:
        if channels_last not in self._seats:
            self._seats[channels_last] = Seats(self.calls(channels_last))
        return self._seats[channels_last]

    def _is_channels_last(self, inputs: Tensors) -> bool:
        """Where its bits are those of a row alone, it keeps the layout that its latents have.

        A VAE may hand the latents of an initial image over channels-last, as in diffusers, and a
        convolution's bits depend on the layout. At a larger size all rows have the plain layout.
        """
        return self._shape.batch_size == 1 and not inputs["sample"].is_contiguous()

    def _tick_together(
        self,
        seats: Seats,
        rows: Sequence[Row],
        inputs: dict[Row, Tensors],
        size: int,
        agreement: Agreement,
    ) -> None:
        seats.seat(rows)
        for call in seats.calls:
            call.fill(
                (index, inputs[row]) for row in rows for index in call.places(seats.rows.index(row))
            )
        outputs = self._run_all(seats, size, agreement)
        for row in rows:
            if row.error is not None:  # its ControlNet failed
                continue
            row.compiled = seats.calls[0].how
            slot = seats.rows.index(row)
            halves = {
                half: output[index : index + 1]
                for call, output in zip(seats.calls, outputs, strict=True)
                for half, index in zip(call.halves, call.places(slot), strict=True)
            }
            self._step(row, inputs[row], self._family.combine(row, halves))

    def _run_all(self, seats: Seats, size: int, agreement: Agreement) -> list[torch.Tensor]:
        """Each call of the tick, with what the rows' ControlNets add to it."""
        outputs = list[torch.Tensor]()
        residuals: Residuals | None = None
        controlled = [(row, slot) for row, slot in seats.taken if row.controls]
        for call in seats.calls:
            if controlled and (not outputs or not self._family.shares_residuals):
                residuals = self._device.run("tick", partial(call.residuals, controlled, size))
            run = partial(call.run, size, agreement.pieces, residuals)
            outputs.append(self._run(call, seats, size, run))
        return outputs

    def _run(
        self, call: NetworkOverBuffers, seats: Seats, size: int, run: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """One call of the network, with the rows' LoRAs and references."""
        network, device = self._family.network, self._device.torch_device
        places = [(None if size == 1 else call.places(slot), row) for row, slot in seats.taken]
        adapted = [(at, row.adapters) for at, row in places if row.adapters]
        looking = [(at, row.references) for at, row in places if row.references]
        with ExitStack() as stack:
            if adapted:
                batch, part = size * len(call.halves), self._family.network_part
                stack.enter_context(applied(network, part, adapted, device, batch))
            if looking:  # behind the LoRAs, which change what is asked with
                stack.enter_context(attending(network, looking, device))
            return self._device.run("tick", run)

    def _inputs(self, row: Row) -> Tensors | None:
        """What the network reads of the row in this tick; None if that failed."""
        try:
            return self._family.dynamic(row, row.timesteps[row.calls])
        except Exception as error:
            self._blame(row, error)
            return None

    def _blame(self, row: Row, error: Exception) -> None:
        if self._device.is_out_of_memory(error) or self._device.is_fatal(error):
            raise error
        row.error = error

    def _step(self, row: Row, inputs: Tensors, output: torch.Tensor) -> None:
        """The row's own scheduler step; a failure stays with this row."""
        timestep = row.timesteps[row.calls]
        if row.request.previews:
            row.seen = Prediction(inputs["sample"], output, float(timestep))
        try:
            self._family.step(row, output, timestep)
        except Exception as error:
            self._blame(row, error)
        row.calls += 1

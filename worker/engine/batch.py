"""One tick: the rows of a shape in one UNet call, then each row's own scheduler step.

A shape has fixed buffers. Each row has a slot in them for as long as it stays in the batch; slots
without a row are computed, too, and ignored. So every call of the UNet has the same shape, and
in a batch of fixed shape an element's bits depend on that element alone.
"""

from collections.abc import Callable, Sequence

import torch

from worker.engine.backend import Shape
from worker.engine.device import Device
from worker.engine.row import Prediction, Row
from worker.engine.unet import UnetInputs, UnetOverBuffers


class TickBatch:
    """The buffers and slots of one shape."""

    def __init__(
        self, shape: Shape, allocate: Callable[[bool], UnetOverBuffers], device: Device
    ) -> None:
        """`allocate` gives buffers, whose sample is laid out channels-last if it is told so."""
        self._rows = shape.rows
        self._guided = shape.guided
        self._allocate = allocate
        self._buffers: dict[bool, UnetOverBuffers] = {}
        self._device = device
        self._slots: list[Row | None] = [None] * shape.rows
        self._seated_channels_last = False
        """Which of the buffers the slots are filled in."""

    @property
    def idle(self) -> bool:
        """Whether no row has a slot."""
        return not any(self._slots)

    def tick(self, rows: Sequence[Row]) -> None:
        """Advance each row by one UNet call."""
        scaled = [(row, self._scale(row)) for row in rows]
        # A failure stays with its row.
        rows = [row for row, sample in scaled if sample is not None]
        samples = [sample for _, sample in scaled if sample is not None]
        if not rows:
            return
        timesteps = [row.timesteps[row.calls] for row in rows]
        unet = self._choose_buffers(samples)
        self._seat(rows, unet.inputs)
        times = torch.zeros(len(unet.inputs.timestep), dtype=torch.float32)
        for row, timestep, sample in zip(rows, timesteps, samples, strict=True):
            for index in self._elements(row):
                times[index] = timestep
                unet.inputs.sample[index].copy_(sample[0])
        unet.inputs.timestep.copy_(self._device.from_host(times), non_blocking=True)
        output = self._device.run("tick", unet.run)
        for row, timestep, sample in zip(rows, timesteps, samples, strict=True):
            self._step(row, timestep, sample, output)

    def leave(self, row: Row) -> None:
        """Free a row's slot."""
        if row in self._slots:
            self._slots[self._slots.index(row)] = None

    def _choose_buffers(self, samples: Sequence[torch.Tensor]) -> UnetOverBuffers:
        """Alone, a row keeps the memory layout that its latents have, as in diffusers.

        A VAE may hand the latents of an initial image over channels-last, and a convolution's
        bits depend on the layout. Rows that share a batch share the plain layout.
        """
        channels_last = self._rows == 1 and not samples[0].is_contiguous()
        if channels_last not in self._buffers:
            self._buffers[channels_last] = self._allocate(channels_last)
        if self._seated_channels_last != channels_last:
            self._seated_channels_last = channels_last
            self._slots = [None] * self._rows
        return self._buffers[channels_last]

    def _elements(self, row: Row) -> list[int]:
        """The row's places in the batch: all unconditional halves come first, as in diffusers."""
        slot = self._slots.index(row)
        return [slot, self._rows + slot] if self._guided else [slot]

    def _seat(self, rows: Sequence[Row], inputs: UnetInputs) -> None:
        """Give each row a slot, and free those of rows that are not in this tick."""
        self._slots = [row if row in rows else None for row in self._slots]
        for row in rows:
            if row not in self._slots:
                self._slots[self._slots.index(None)] = row
                self._fill(row, inputs)

    def _fill(self, row: Row, inputs: UnetInputs) -> None:
        """Copy what stays the same for all of a row's ticks."""
        elements = self._elements(row)
        texts = [row.negative, row.prompt] if row.negative is not None else [row.prompt]
        for index, text in zip(elements, texts, strict=True):
            inputs.tokens[index].copy_(text.tokens[0])
            if inputs.pooled is not None and text.pooled is not None:
                inputs.pooled[index].copy_(text.pooled[0])
            if inputs.time_condition is not None and row.time_condition is not None:
                inputs.time_condition[index].copy_(row.time_condition[0])

    def _scale(self, row: Row) -> torch.Tensor | None:
        """The row's input as its scheduler wants it; None if that failed."""
        try:
            scaled: torch.Tensor = row.scheduler.scale_model_input(
                row.latents, row.timesteps[row.calls]
            )
        except Exception as error:
            self._blame(row, error)
            return None
        return scaled

    def _blame(self, row: Row, error: Exception) -> None:
        if self._device.is_out_of_memory(error) or self._device.is_fatal(error):
            raise error
        row.error = error

    def _step(
        self, row: Row, timestep: torch.Tensor, sample: torch.Tensor, output: torch.Tensor
    ) -> None:
        """The row's own scheduler step; a failure stays with this row."""
        guided = self._guide(row, output)
        if row.request.previews:
            row.seen = Prediction(sample, guided, float(timestep))
        try:
            row.latents = row.scheduler.step(
                guided, timestep, row.latents, **row.step_options, return_dict=False
            )[0]
        except Exception as error:
            self._blame(row, error)
        row.calls += 1

    def _guide(self, row: Row, output: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (https://arxiv.org/abs/2207.12598), as diffusers computes it."""
        elements = self._elements(row)
        if not self._guided:
            # A copy: schedulers keep earlier outputs, and the next tick may reuse this memory.
            return output[elements[0] : elements[0] + 1].clone()
        unconditional, conditional = (output[index : index + 1] for index in elements)
        scale = row.request.guidance_scale
        return unconditional + scale * (conditional - unconditional)

"""Before the first job: choose the rows where nobody has, and run every size once for real."""

import logging
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from shared.core.errors import ModelUnavailable
from worker.engine.backend import Shape
from worker.engine.device import start_download
from worker.engine.interface import ImageRequest, TickTime, WarmUpReport
from worker.engine.loaded import LoadedModel
from worker.engine.model import Model
from worker.engine.row import Row

logger = logging.getLogger(__name__)

_CANDIDATES = (1, 2, 4, 8, 16)
_MOST_ON_CPU = 8
_WORTH_IT = 1.15
"""Doubling the rows must give 15 % more images per second, or it only costs latency."""
_WORTH_IT_ON_CPU = 1.05
_WORTH_A_THREAD = 1.5
"""Doubling the threads must make a row this much faster, by the best of some ticks: threads are
part of the bits, and what is gained or not by a clear margin is chosen again after a restart."""
_TIMED_TICKS = 5
_TIMED_SECONDS = 1.0
"""More ticks are timed only within this many seconds."""
_PROOF_SECONDS = 60.0
"""For the default size, and as much for all others together."""


class Room(Protocol):
    """How many rows fit, as far as is known."""

    def limit(self, pixels: int) -> int:
        """At an image of this many pixels."""

    def most(self, shape: Shape) -> int:
        """That may share a tick."""

    def shrink(self, shape: Shape) -> Shape | None:
        """A shape that did not fit at fewer rows, from now on; None at one row."""


def warm_up(loaded: LoadedModel, model: Model, room: Room) -> WarmUpReport:
    """Choose threads and rows where nobody has, prove which batch sizes agree, and run every
    configured size.

    Raises:
        ModelUnavailable: a size does not fit, or gives no image.
    """
    started = time.monotonic()
    spec, table = loaded.spec, list[TickTime]()
    if _on_cpu(loaded):
        loaded.device.use_threads(spec.cpu_threads or _choose_threads(loaded, model))
    rows = spec.max_batch_size or 1
    if spec.max_batch_size is None:
        rows, table = _choose_rows(loaded, model)
    rows = _choose_base(loaded, model, rows)
    proven: tuple[int, ...] = ()
    deadline = time.monotonic() + _PROOF_SECONDS
    for width, height in spec.sizes_to_warm:
        request = trial_request(loaded, width, height)
        shape = model.shape(request, min(model.base or rows, room.limit(width * height)))
        model.will_warm(shape)
        _prove(model, request, deadline)
        if not model.family.variant_per_text:
            _prove(model, replace(request, guidance_scale=1.0), deadline)
        fitting, seconds = _generate_what_fits(loaded, model, shape, room)
        table.append(TickTime(width, height, fitting.batch_size, seconds))
        proven = proven or model.proven_sizes(fitting)
    model.keep_agreements()
    return WarmUpReport(
        time.monotonic() - started, spec.sizes_to_warm, rows, tuple(table), agreeing_sizes=proven
    )


def _on_cpu(loaded: LoadedModel) -> bool:
    return loaded.device.torch_device.type == "cpu"


def _choose_threads(loaded: LoadedModel, model: Model) -> int:
    """The most at which each doubling still pays for a row alone."""
    device = loaded.device
    if "OMP_NUM_THREADS" in os.environ:
        return device.cpu_threads or 1
    request = trial_request(loaded, loaded.spec.default_width, loaded.spec.default_height)
    shape = model.shape(request, 1)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen, seconds = 1, 0.0
    for threads in (2**power for power in range(8)):
        if threads > (available or 1):
            break
        device.use_threads(threads)
        faster = min(tick.wall for tick in _tick_times(loaded, model, shape))
        if threads > 1 and seconds / faster < _WORTH_A_THREAD:
            break
        chosen, seconds = threads, faster
    model.free_buffers(shape)
    return chosen


def _choose_base(loaded: LoadedModel, model: Model, rows: int) -> int:
    """Find the smallest batch size with whose bits batches of at least half the rows agree, and set
    it as the model's base; returns the rows of the largest batch."""
    if not model.family.sizes_agree or loaded.spec.compile == "inductor":
        return rows
    request = trial_request(loaded, loaded.spec.default_width, loaded.spec.default_height)
    for base in (size for size in _CANDIDATES if size < rows):
        shape = model.shape(request, base)
        model.will_warm(shape)
        model.base, model.largest = base, rows
        known = model.prove(shape, model.prepare(request, shape), _PROOF_SECONDS)
        if known.sizes[-1] > base and known.sizes[-1] * 2 >= rows:
            model.largest = known.sizes[-1]
            return model.largest
        model.free_buffers(shape)
        if _on_cpu(loaded) and loaded.spec.max_batch_size is None:
            rows = 1  # nobody wants padding there
            break
    model.base, model.largest = None, 1
    return rows


def _generate_what_fits(
    loaded: LoadedModel, model: Model, shape: Shape, room: Room
) -> tuple[Shape, float]:
    """At fewer rows where memory does not suffice, as between jobs."""
    while True:
        rows = room.most(shape) if shape.batch_size == model.base else 1
        try:
            return shape, _generate(loaded, model, shape, rows)
        except Exception as error:
            if not loaded.device.is_out_of_memory(error):
                raise
        model.release_memory()
        smaller = room.shrink(shape)
        if smaller is None:
            raise ModelUnavailable(
                f"Model {loaded.spec.name!r} runs out of memory at {shape.width}x{shape.height}."
            )
        logger.warning("%s does not fit; %d rows are tried", shape, room.most(smaller))
        shape = smaller


def _prove(model: Model, request: ImageRequest, deadline: float) -> None:
    """Which sizes agree, of a shape of which that is not known."""
    if model.base is None:
        return
    shape, seconds = model.shape(request, model.base), deadline - time.monotonic()
    if seconds > 0 and not model.is_known(shape):
        model.prove(shape, model.prepare(request, shape), seconds)


def _choose_rows(loaded: LoadedModel, model: Model) -> tuple[int, list[TickTime]]:
    """The largest rows at which each doubling still pays, at the default size; on a CPU by its own
    time, of which other work takes none away."""
    width, height = loaded.spec.default_width, loaded.spec.default_height
    request = trial_request(loaded, width, height)
    table: list[TickTime] = []
    best = 1
    worth_it = _WORTH_IT_ON_CPU if _on_cpu(loaded) else _WORTH_IT
    for rows in _CANDIDATES:
        if rows > _MOST_ON_CPU and _on_cpu(loaded):
            break
        shape = model.shape(request, rows)
        model.will_warm(shape)  # to be measured as it will run
        try:
            seconds = min(tick.compared for tick in _tick_times(loaded, model, shape))
        except Exception as error:
            if rows == 1 or not loaded.device.is_out_of_memory(error):
                raise
            loaded.device.release_memory()
            break
        finally:
            model.free_buffers(shape)
        table.append(TickTime(width, height, rows, seconds))
        if rows > 1:
            before = table[-2]
            if (rows / seconds) / (before.batch_size / before.seconds) < worth_it:
                break
        best = rows
    return best, table


def _generate(loaded: LoadedModel, model: Model, shape: Shape, rows: int) -> float:
    """A short image at this shape, all the way to pixels, next to the buffers of this many; returns
    the median tick time."""
    model.will_warm(shape)
    request = trial_request(loaded, shape.width, shape.height)
    row = model.prepare(request, shape)
    times: list[float] = []
    while not row.finished:
        times.append(_timed_tick(loaded, model, shape, [row]))
        if row.error is not None:
            raise row.error
    crowd = [model.prepare(request, shape) for _ in range(rows if rows > 1 else 0)]
    if crowd:
        model.tick(shape, crowd)
    image = loaded.device.run("decode", lambda: model.family.decode(row))
    downloaded = start_download(image, loaded.device)
    loaded.device.mark().wait()
    for each in (row, *crowd):
        model.leave(each)
    decoded = downloaded()
    if not decoded.sound:
        logger.warning(
            "%s gives NaN or black in %s: every image will be made once more in float32",
            loaded.spec.name,
            loaded.dtype,
        )
    if decoded.pixels.shape != (shape.height, shape.width, 3):
        raise ModelUnavailable(
            f"Model {loaded.spec.name!r} made an image of {decoded.pixels.shape} for "
            f"{shape.width}x{shape.height}."
        )
    return statistics.median(times)


class _Tick(NamedTuple):
    wall: float
    """Seconds."""
    compared: float
    """Seconds by the device's own clock."""


def _tick_times(loaded: LoadedModel, model: Model, shape: Shape) -> Iterator[_Tick]:
    size, steps = (shape.width, shape.height), _TIMED_TICKS + 1
    rows = [
        model.prepare(trial_request(loaded, *size, seed, steps), shape)
        for seed in range(shape.batch_size)
    ]
    clock, total = loaded.device.clock, 0.0
    for number in range(1 + _TIMED_TICKS):
        begin = clock()
        wall = _timed_tick(loaded, model, shape, rows)
        total += wall
        if number or total > _TIMED_SECONDS:  # the first has allocation and the choice of kernels
            yield _Tick(wall, clock() - begin)
        if number and total > _TIMED_SECONDS:
            break
    # Beside the rows there must be room for the VAE.
    start_download(loaded.device.run("decode", lambda: model.family.decode(rows[0])), loaded.device)
    loaded.device.mark().wait()


def _timed_tick(loaded: LoadedModel, model: Model, shape: Shape, rows: list[Row]) -> float:
    begin = loaded.device.mark()
    model.tick(shape, rows)
    end = loaded.device.mark()
    end.wait()
    return end.seconds_since(begin)


def trial_request(
    loaded: LoadedModel, width: int, height: int, seed: int = 0, steps: int = 3
) -> ImageRequest:
    """What is made to try a model out."""
    spec = loaded.spec
    return ImageRequest(
        prompt="a photograph",
        negative_prompt=None,
        seed=seed,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=spec.default_guidance_scale,
        scheduler=spec.scheduler,
    )

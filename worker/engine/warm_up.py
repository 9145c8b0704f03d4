"""Before the first job: choose the rows where nobody has, and run every size once for real."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator

from shared.core.errors import ModelUnavailable
from worker.engine.backend import Shape
from worker.engine.interface import ImageRequest, TickTime, WarmUpReport
from worker.engine.loaded import LoadedModel
from worker.engine.model import Model
from worker.engine.pictures import start_download
from worker.engine.row import Row

logger = logging.getLogger(__name__)

_CANDIDATES = (1, 2, 4, 8, 16)
_WORTH_IT = 1.15
"""Doubling the rows must give 15 % more images per second, or it only costs latency."""
_TIMED_TICKS = 5


Shrink = Callable[[Shape], Shape | None]
"""Half the rows of a shape that did not fit; None at one row."""


def warm_up(loaded: LoadedModel, model: Model, shrink: Shrink) -> tuple[WarmUpReport, int]:
    """Run every configured size; returns the report and the model's rows.

    Raises:
        ModelUnavailable: a size does not fit, or gives no picture.
    """
    started = time.monotonic()
    spec, table = loaded.spec, list[TickTime]()
    rows = spec.rows or 1
    if spec.rows is None and loaded.device.torch_device.type != "cpu":
        rows, table = _choose_rows(loaded, model)
    for width, height in spec.sizes_to_warm:
        shape = Shape(width, height, model.guided(_request(loaded, width, height)), rows)
        fitting, seconds = _generate_what_fits(loaded, model, shape, shrink)
        table.append(TickTime(width, height, fitting.rows, seconds))
    report = WarmUpReport(time.monotonic() - started, spec.sizes_to_warm, rows, tuple(table))
    return report, rows


def _generate_what_fits(
    loaded: LoadedModel, model: Model, shape: Shape, shrink: Shrink
) -> tuple[Shape, float]:
    """At fewer rows where memory does not suffice, as between jobs."""
    while True:
        try:
            return shape, _generate(loaded, model, shape)
        except Exception as error:
            if not loaded.device.is_out_of_memory(error):
                raise
        model.release_memory()
        smaller = shrink(shape)
        if smaller is None:
            raise ModelUnavailable(
                f"Model {loaded.spec.name!r} runs out of memory at {shape.width}x{shape.height}."
            )
        logger.warning("%s does not fit; %d rows are tried", shape, smaller.rows)
        shape = smaller


def _choose_rows(loaded: LoadedModel, model: Model) -> tuple[int, list[TickTime]]:
    """The largest rows at which each doubling still pays, at the default size."""
    width, height = loaded.spec.default_width, loaded.spec.default_height
    guided = model.guided(_request(loaded, width, height))
    table: list[TickTime] = []
    best = 1
    for rows in _CANDIDATES:
        shape = Shape(width, height, guided, rows)
        try:
            seconds = statistics.median(_tick_times(loaded, model, shape, _TIMED_TICKS))
        except Exception as error:
            if rows == 1 or not loaded.device.is_out_of_memory(error):
                raise
            loaded.device.release_memory()
            break
        finally:
            model.forget(shape)
        table.append(TickTime(width, height, rows, seconds))
        if rows > 1:
            before = table[-2]
            if (rows / seconds) / (before.rows / before.seconds) < _WORTH_IT:
                break
        best = rows
    return best, table


def _generate(loaded: LoadedModel, model: Model, shape: Shape) -> float:
    """A short image at this shape, all the way to pixels; returns the median tick time."""
    model.will_warm(shape)
    request = _request(loaded, shape.width, shape.height)
    row = model.prepare(request)
    times: list[float] = []
    while not row.finished:
        times.append(_timed_tick(loaded, model, shape, [row]))
        if row.error is not None:
            raise row.error
    image = loaded.device.run("decode", lambda: model.decode(row.latents))
    download = start_download(image, loaded.device)
    loaded.device.mark().wait()
    model.leave(row)
    picture = download.picture()
    if not picture.sound:
        logger.warning(
            "%s gives NaN or black in %s: every image will be made once more in float32",
            loaded.spec.name,
            loaded.dtype,
        )
    if picture.pixels.shape != (shape.height, shape.width, 3):
        raise ModelUnavailable(
            f"Model {loaded.spec.name!r} made a picture of {picture.pixels.shape} for "
            f"{shape.width}x{shape.height}."
        )
    return statistics.median(times)


def _tick_times(loaded: LoadedModel, model: Model, shape: Shape, count: int) -> Iterator[float]:
    rows = [
        model.prepare(_request(loaded, shape.width, shape.height, seed, count + 1))
        for seed in range(shape.rows)
    ]
    _timed_tick(loaded, model, shape, rows)  # allocation and kernel choice
    for _ in range(count):
        yield _timed_tick(loaded, model, shape, rows)
    # Beside the rows there must be room for the VAE.
    start_download(
        loaded.device.run("decode", lambda: model.decode(rows[0].latents)), loaded.device
    )
    loaded.device.mark().wait()


def _timed_tick(loaded: LoadedModel, model: Model, shape: Shape, rows: list[Row]) -> float:
    begin = loaded.device.mark()
    model.tick(shape, rows)
    end = loaded.device.mark()
    end.wait()
    return end.seconds_since(begin)


def _request(
    loaded: LoadedModel, width: int, height: int, seed: int = 0, steps: int = 3
) -> ImageRequest:
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

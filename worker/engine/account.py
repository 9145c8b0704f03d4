"""The engine's own account: device seconds and the totals that metrics show."""

from collections import Counter
from collections.abc import Sequence

from worker.engine.backend import R, Shape
from worker.engine.flight import Flight
from worker.engine.interface import EngineCounters


class Account:
    """Who used the device for how long. Written by the engine's thread, read by any."""

    def __init__(self) -> None:
        self.busy_seconds = 0.0
        self.tick_seconds = 0.0
        """Running mean of a tick, for decisions about the next one."""
        self.decode_seconds = 0.0
        """Running mean of a decode."""
        self.shrinks = 0
        self.images = 0
        self.canceled = 0
        self._ticks = 0
        self._live = 0
        self._padded = 0
        self._steps: Counter[str] = Counter()

    def bill_tick(self, shape: Shape, flights: Sequence[Flight[R]], seconds: float) -> None:
        """Share a tick's time by its live rows: the padding is on them too."""
        self.busy_seconds += seconds
        self.tick_seconds = _running_mean(self.tick_seconds, seconds)
        for flight in flights:
            flight.gpu_seconds += seconds / len(flights)
            self._steps[flight.lane] += 1
        self._ticks += 1
        self._live += len(flights)
        self._padded += shape.rows - len(flights)

    def bill(self, flight: Flight[R], seconds: float) -> None:
        """Charge one image for work done for it alone: encoding, rescue."""
        self.busy_seconds += seconds
        flight.gpu_seconds += seconds

    def bill_decode(self, flight: Flight[R], seconds: float) -> None:
        """Charge one image for its decoding."""
        self.decode_seconds = _running_mean(self.decode_seconds, seconds)
        self.bill(flight, seconds)

    def counters(self, pauses: int) -> EngineCounters:
        """The totals as they stand."""
        return EngineCounters(
            ticks=self._ticks,
            live_rows=self._live,
            padded_rows=self._padded,
            steps_by_lane=dict(self._steps),
            pauses=pauses,
            out_of_memory_shrinks=self.shrinks,
            images=self.images,
            canceled=self.canceled,
        )


def _running_mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else 0.8 * mean + 0.2 * value

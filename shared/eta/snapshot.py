"""What the leading dispatcher measures for estimates; travels through Redis as JSON."""

from pydantic import BaseModel, ConfigDict

from shared.eta.calibration import Factors, default_factors
from shared.eta.rates import Pace, Rate
from shared.eta.work import Work
from shared.queue.names import BULK


class Load(BaseModel):
    """Unfinished work of a model in a lane. Costs are pixels × steps × images."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    lane: str
    queued_jobs: int = 0
    queued_images: int = 0
    queued_cost: float = 0.0
    running_images: int = 0
    running_cost: float = 0.0


class Throughput(BaseModel):
    """What a model's workers got done lately while jobs waited for them, whatever held them up."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    model: str
    cost_per_second: float
    rows: int
    """Of all of its live workers together, then."""


class Snapshot(BaseModel):
    """Everything that an estimate needs apart from the job and the roster."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rates: tuple[Rate, ...] = ()
    paces: tuple[Pace, ...] = ()
    factors: tuple[Factors, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    loads: tuple[Load, ...] = ()
    ttl_seconds: float = 0.0
    """For how long it stands, from the moment it was made."""

    def row_seconds(self, work: Work, device: str) -> float | None:
        """Seconds of one such image in a row of the device; None without evidence."""
        for rate in self.rates:
            if (rate.model, rate.device, rate.width, rate.height, rate.steps, rate.guided) == (
                *(work.model, device, work.width, work.height, work.steps, work.guided),
            ):
                return rate.seconds
        pace = self.pace(work.model, device)
        return None if pace is None else pace * work.cost

    def pace(self, model: str, device: str) -> float | None:
        """Seconds per pixel and step; None without evidence."""
        return next(
            (pace.seconds for pace in self.paces if (pace.model, pace.device) == (model, device)),
            None,
        )

    def throughput(self, model: str, rows: int) -> float | None:
        """Cost per second, scaled to the rows there are now; None where nothing waited lately."""
        return next(
            (
                seen.cost_per_second * rows / seen.rows
                for seen in self.throughputs
                if seen.model == model and seen.rows
            ),
            None,
        )

    def factors_of(self, model: str, *, waits: bool) -> Factors:
        """By what to correct estimates of this model."""
        found = (f for f in self.factors if f.model == model and f.waits == waits)
        return next(found, None) or default_factors(model, waits=waits)

    def load(self, model: str, lane: str) -> Load:
        """What is unfinished; bulk work has the interactive work before it, too."""
        own = [load for load in self.loads if load.model == model and lane in (load.lane, BULK)]
        return Load(
            model=model,
            lane=lane,
            queued_jobs=sum(load.queued_jobs for load in own),
            queued_images=sum(load.queued_images for load in own),
            queued_cost=sum(load.queued_cost for load in own),
            running_images=sum(load.running_images for load in own),
            running_cost=sum(load.running_cost for load in own),
        )

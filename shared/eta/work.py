"""What an estimate is about, and what it says."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """The pictures of one job."""

    model: str
    width: int
    height: int
    steps: int
    """Denoising steps that run: fewer than asked for where a `strength` leaves some out."""
    guided: bool
    """Whether a step computes an unconditional half, too."""
    images: int

    @property
    def cost(self) -> float:
        """Pixels × steps of one image."""
        return float(self.width * self.height * self.steps)


def work_of(
    *,
    model: str,
    width: int,
    height: int,
    guidance_scale: float,
    images: int,
    cost: int,
) -> Work:
    """The work of a job with these settings, whose cost counts the steps that run."""
    run = max(1, cost // (width * height * images))
    return Work(model, width, height, run, guidance_scale > 1, images)


@dataclass(frozen=True)
class Estimate:
    """Seconds until the job is done, counted from the moment of the estimate."""

    point: float
    """What the model of the queue says, before it is corrected by experience."""
    p50: float
    """Half of such jobs are done by then."""
    p90: float
    """Nine of ten such jobs are done by then."""
    waits: bool
    """Whether it has to wait for a free row; the two cases err differently."""

    def as_json(self) -> dict[str, Any]:
        """For `jobs.estimate`."""
        return {
            "point": round(self.point, 3),
            "p50": round(self.p50, 3),
            "p90": round(self.p90, 3),
            "waits": self.waits,
        }

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Estimate":
        """What was kept with a job."""
        return cls(kept["point"], kept["p50"], kept["p90"], kept["waits"])

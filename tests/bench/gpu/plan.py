"""What is measured: the models, and how thoroughly."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["off", "graphs", "inductor"]


@dataclass(frozen=True)
class Plan:
    """One model's measurements."""

    model: str
    """`sd21`, `sdxl`, or `toy-…`."""
    side: int
    """Width and height in pixels."""
    steps: int
    rows: tuple[int, ...] = (1, 2, 4, 8, 16)
    modes: tuple[Mode, ...] = ("off", "graphs", "inductor")
    rounds: int = 3
    """How many times the rows are filled for each throughput number."""
    repeats: int = 5
    arrivals: int = 40
    """Poisson arrivals, at 0.9 of the throughput measured before."""
    crowds: int = 3
    """Crowds for each scheduler in the exactness table."""


FULL = (Plan("sd21", 512, 25), Plan("sdxl", 1024, 30, rows=(1, 2, 4, 8), arrivals=20))
TINY = (
    Plan(
        "toy-sd15",
        64,
        3,
        rows=(1, 2),
        modes=("off",),
        rounds=1,
        repeats=1,
        arrivals=3,
        crowds=1,
    ),
)
"""Everything once, on a toy model: to see on any machine that the script runs."""

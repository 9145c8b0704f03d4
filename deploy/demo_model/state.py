"""The steps of a training and its state on disk, from which a killed run can resume."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from deploy.demo_model.process_group import ProcessGroup

_SECONDS_BETWEEN_SAVES = 60.0


def save_atomically(write: Callable[[Path], object], target: Path) -> None:
    """Lets `write` fill a temporary file beside `target` and puts it in its place at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    write(temporary)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(target)


def save(state: dict[str, Any], target: Path) -> None:
    """Saves tensors and numbers under `target`, atomically."""
    save_atomically(lambda path: torch.save(state, path), target)


def load(source: Path, device: torch.device) -> dict[str, Any] | None:
    """The state saved under `source`, or None where a stage has not begun."""
    if not source.exists():
        return None
    state: dict[str, Any] = torch.load(source, map_location=device, weights_only=True)
    return state


class Clock:
    """Counts the seconds a stage has trained, over restarts, against its budget.

    The learning rate follows the clock and not a step count, because how many steps fit in a
    budget is not known beforehand on a machine that is shared with other work.
    """

    def __init__(self, budget_minutes: float, spent_seconds: float = 0.0) -> None:
        self._budget = budget_minutes * 60
        self._spent_before = spent_seconds
        self._began = self._saved = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds trained in this and earlier runs."""
        return self._spent_before + time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, self.spent / self._budget) if self._budget > 0 else 1.0

    def save_due(self) -> bool:
        """Whether it is time to write state again: a killed run loses a minute at most."""
        now = time.monotonic()
        if now - self._saved < _SECONDS_BETWEEN_SAVES:
            return False
        self._saved = now
        return True


class Run(Protocol):
    """What is trained, and how far it is."""

    step: int

    def keep(self, spent: float) -> None:
        """Write everything that a later run needs to continue."""


def until_spent(
    name: str, run: Run, clock: Clock, group: ProcessGroup, tell: Callable[[], str], *, every: int
) -> Iterator[float]:
    """The progress before each step, until the budget is spent; keeps the run's state meanwhile.

    Each `every` steps it prints where the run is and what `tell` says.
    """
    while (progress := group.agree(clock.progress)) < 1:
        yield progress
        if group.is_leader and run.step % every == 0:
            at = f"{name} {progress:6.1%}  step {run.step}  {tell()}  {clock.spent / 60:.1f} min"
            print(at, flush=True)
        if group.is_leader and clock.save_due():
            run.keep(clock.spent)
    if group.is_leader:
        run.keep(clock.spent)
    group.wait()

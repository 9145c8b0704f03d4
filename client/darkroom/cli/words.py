"""How states, times and amounts read on a terminal."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from darkroom.cli.output import flat

if TYPE_CHECKING:
    from darkroom.types.jobs import Job, JobDryRun

_COLOURS = {
    "succeeded": "green",
    "ready": "green",
    "ok": "green",
    "running": "cyan",
    "validating": "cyan",
    "queued": "blue",
    "pending": "blue",
    "partial": "yellow",
    "warning": "yellow",
    "paused": "yellow",
    "expired": "yellow",
    "canceled": "yellow",
    "draining": "yellow",
    "unknown": "dim",
    "failed": "red",
    "fault": "red",
}


def state_markup(state: str) -> str:
    """A state in its colour."""
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def steps_of(made: "Job | JobDryRun") -> str:
    """The steps asked for, and how many of them run where that is fewer."""
    if made.executed_steps in (None, made.steps):
        return str(made.steps)
    return f"{made.steps}, of which {made.executed_steps} run"


def ago(moment: datetime | None) -> str:
    """How long ago, or how long until then; nothing for None."""
    if moment is None:
        return ""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if seconds < -1:
        return f"in {span(-seconds)}"
    if seconds < 0:
        return "any moment"
    return "just now" if seconds < 2 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """A duration in its largest one or two units."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def milliseconds(value: float | None) -> str | None:
    """A duration given in milliseconds; None stays None."""
    return None if value is None else span(value / 1000)


def size(count: int) -> str:
    """An amount of bytes, in decimal units."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def short(text: object, length: int = 60) -> str:
    """The beginning of a text, on one line."""
    words = flat(text)
    return words if len(words) <= length else f"{words[: length - 1].rstrip()}…"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

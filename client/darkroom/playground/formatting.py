"""Errors, states and amounts in plain words, with advice."""

from datetime import UTC, datetime
from string import punctuation
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import humanize
import streamlit as st

import darkroom
from darkroom.errors import advice_in

_DETAIL_IS_REDUNDANT = frozenset({"not_found", "receipt_missing", "database_unavailable"})
"""Codes whose advice says everything that the server's own message says."""


def explain(error: darkroom.DarkroomError) -> str:
    """What went wrong and what to do, as Markdown."""
    match error:
        case darkroom.errors.ValidationFailed():
            return f"**Darkroom does not accept these settings.** {_broken_rules(error)}"
        case darkroom.APIStatusError():
            return _explain_problem(error)
        case darkroom.errors.ConfigurationError():
            return (
                "**The playground does not know where Darkroom is.** Start it with DARKROOM_URL "
                "and DARKROOM_API_KEY set, or in the folder where you ran `make run`."
            )
        case darkroom.errors.APIConnectionError():
            return (
                "**Darkroom does not answer.** Is it running? `make run` starts it on this "
                "machine. Submitted jobs are safe; reload the page when it is back."
            )
    return f"**That did not work.** {escape(str(error))}"


def _explain_problem(error: darkroom.APIStatusError) -> str:
    title = error.title.rstrip(".") or "That did not work"
    advice = advice_in("playground", error) or "Try again."
    shows_detail = error.detail and error.code not in _DETAIL_IS_REDUNDANT
    detail = f" ({escape(error.detail or '')})" if shows_detail else ""
    request = f"  \n:small[:gray[request {error.request_id}]]" if error.request_id else ""
    return f"**{title}.** {advice}{detail}{request}"


def _broken_rules(error: darkroom.APIStatusError) -> str:
    rules = []
    for broken in error.errors:
        field = (broken.pointer or broken.parameter or "").strip("/").replace("_", " ")
        rules.append(f"{field}: {broken.message}" if field else broken.message)
    return escape("; ".join(rules) or error.detail or "Change them and try again.")


def explain_failure(job: darkroom.Job) -> str:
    """Why a job has no images, and what to do."""
    if job.state == "canceled":
        return "Canceled."
    if job.state == "expired":
        return "Its deadline passed before it was done."
    message = job.error.message if job.error else None
    advice = darkroom.JobFailed(job).advice or "Change its settings, or try again."
    return f"**It failed.** {advice}" + (f" ({escape(message)})" if message else "")


def escape(text: str) -> str:
    """Make a text safe to draw as Markdown: it appears exactly as it is."""
    # Every ASCII punctuation character may be escaped; a line break could begin a list or heading.
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in punctuation else sign for sign in line)


def short(text: str, length: int = 90) -> str:
    """Truncate a text to `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def count(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def span(seconds: float) -> str:
    """A rough duration of at least a second: `5 minutes`, `1 hour and 30 minutes`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    unit = "minutes" if seconds < 86_400 else "hours"
    return humanize.precisedelta(seconds, minimum_unit=unit, format="%.0f")


def until(moment: datetime) -> str:
    """How long it is until a moment."""
    return span(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


def when(moment: datetime) -> str:
    """A moment by the viewer's clock; in UTC where the browser does not tell its zone."""
    return f"{moment.astimezone(zone()):%Y-%m-%d %H:%M %Z}"


def zone() -> ZoneInfo:
    """The viewer's time zone."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def match(score: float | None) -> str:
    """A score, 0 to 1, as one plain number; nothing without one."""
    return "" if score is None else f"{max(0, round(100 * score))}% match"

"""Errors, states and amounts in plain words, with what to do."""

from datetime import UTC, datetime
from string import punctuation

import darkroom

_ADVICE = {
    "unauthenticated": (
        "The API key is not accepted",
        "Start the playground with the right DARKROOM_API_KEY; `.darkroom/env` has the local one.",
    ),
    "insufficient_scope": (
        "The playground's API key may not do this",
        "Ask whoever runs Darkroom for a key with more scopes.",
    ),
    "model_not_allowed": ("The key may not use this model", "Choose another model."),
    "size_not_allowed": ("The key may not make pictures this large", "Choose a smaller size."),
    "not_found": (
        "It is not there any more",
        "Perhaps it was deleted. Reload the page to see what there is.",
    ),
    "object_missing": (
        "The picture's file is gone",
        "Its settings are still on record: make it again with “Same seed again”.",
    ),
    "job_not_finished": (
        "Its job has not ended",
        "Cancel the job, or wait until it is done; then delete.",
    ),
    "job_not_cancelable": ("The job has ended already", "There is nothing left to cancel."),
    "job_not_retryable": ("The job cannot be tried again", "Submit it anew instead."),
    "batch_has_ended": ("The batch has ended", "It can be changed no more."),
    "nothing_to_retry": ("Nothing has failed", "There is nothing to try again."),
    "batch_rejected": (
        "The file has lines that break a rule",
        "Mend the lines below, or choose to leave bad lines out.",
    ),
    "image_refused": (
        "This picture cannot be used",
        "Take a PNG, JPEG or WebP of 64 to 4096 pixels a side and at most 10 MB.",
    ),
    "body_too_large": ("The file is too large", "Take a smaller one."),
    "receipt_missing": (
        "This picture carries no receipt",
        "Only files made by Darkroom and not saved anew by another program have one. You can use "
        "it as an initial image below.",
    ),
    "prompt_unknown": (
        "Nobody knows this picture's prompt",
        "Pictures are compared by their prompts; search with words instead.",
    ),
    "not_reproducible": (
        "It cannot be made again",
        "What it was made from is not there any more, such as its initial image.",
    ),
    "rate_limited": ("Too many requests", "Wait a little and try again."),
    "too_many_jobs": ("Too many jobs wait", "Wait until some are done, or cancel some."),
    "queued_cost_exceeded": ("Too much work waits", "Wait until some is done, or cancel some."),
    "upload_bytes_exceeded": ("Too many uploads are kept", "Delete some, or start from an image."),
    "gpu_seconds_exceeded": (
        "Too little of today's device time is left",
        "Wait until your jobs end, or try again tomorrow (UTC).",
    ),
    "overloaded": ("More work waits than the server takes", "Try again in a minute."),
    "busy": ("The server is busy", "Try again in a moment."),
    "database_unavailable": (
        "The database is away",
        "Nothing was lost. Try again in a moment; if it lasts, see to Postgres.",
    ),
    "storage_unavailable": (
        "The object store is away",
        "Pictures come back with it. Try again in a moment; if it lasts, see to S3.",
    ),
    "disk_full": (
        "The server's disk is full",
        "Nothing was accepted. Make room in its TMPDIR.",
    ),
    "embedding_unavailable": (
        "Search and ideas are not ready",
        "They need a CPU worker (`python -m worker cpu`), which is starting or away. Try again in "
        "a moment; the rest of the playground works.",
    ),
    "internal_error": ("Darkroom failed at this", "It is a bug: report it with the request id."),
}
_OF_JOBS = {
    "out_of_memory": "The device ran out of memory: take a smaller size or fewer pictures.",
    "nan_output": "The model gave an empty picture: change steps, guidance or scheduler.",
    "model_unavailable": "The model cannot be loaded: choose another, or look at the worker's log.",
    "worker_lost": "Its worker went away repeatedly: look at the worker's log, then try again.",
    "timed_out": "It took too long: take fewer steps or a smaller size.",
    "storage_unavailable": "The object store was away: try again.",
    "device_lost": "The device failed: try again, and look at the worker's log if it lasts.",
}

_SAID_BY_ADVICE = frozenset({"not_found", "receipt_missing", "database_unavailable"})
"""Codes whose advice says all that the server's own words say."""


def explain(error: darkroom.DarkroomError) -> str:
    """What went wrong and what to do, as Markdown."""
    match error:
        case darkroom.errors.ValidationFailed():
            return f"**Darkroom does not take these settings.** {_broken_rules(error)}"
        case darkroom.ApiError():
            return _explain_problem(error)
        case darkroom.errors.ConfigurationError():
            return (
                "**The playground does not know where Darkroom is.** Start it with DARKROOM_URL "
                "and DARKROOM_API_KEY set, or in the folder where `make run` was called."
            )
        case darkroom.errors.NoAnswer():
            return (
                "**Darkroom does not answer.** Is it running? `make run` starts it on this "
                "machine. What was submitted is safe; reload the page when it is back."
            )
    return f"**That did not work.** {escape(str(error))}"


def _explain_problem(error: darkroom.ApiError) -> str:
    title, advice = _ADVICE.get(error.code, (error.title or "That did not work", "Try again."))
    wait = f" The server asks to wait {error.retry_after:.0f} s." if error.retry_after else ""
    said = (
        f" ({escape(error.detail)})" if error.detail and error.code not in _SAID_BY_ADVICE else ""
    )
    number = f"  \n:small[:gray[request {error.request_id}]]" if error.request_id else ""
    return f"**{title}.** {advice}{wait}{said}{number}"


def _broken_rules(error: darkroom.ApiError) -> str:
    rules = []
    for broken in error.errors:
        field = (broken.pointer or broken.parameter or "").strip("/").replace("_", " ")
        rules.append(f"{field}: {broken.message}" if field else broken.message)
    return escape("; ".join(rules) or error.detail or "Change them and try again.")


def explain_failure(job: darkroom.Job) -> str:
    """Why a job has no pictures, and what to do."""
    if job.state == "canceled":
        return "Canceled."
    if job.state == "expired":
        return "Its deadline passed before it was done."
    code = job.error.code if job.error else ""
    told = job.error.message if job.error and job.error.message else ""
    advice = _OF_JOBS.get(code, "Change its settings, or try again.")
    return f"**It failed.** {advice}" + (f" ({escape(told)})" if told else "")


def escape(text: str) -> str:
    """A text as it stands, where Markdown is drawn."""
    # Every ASCII punctuation character may be escaped; a line break could begin a list or heading.
    signs = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in punctuation else sign for sign in signs)


def short(text: str, most: int = 90) -> str:
    """The beginning of a text."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def count(number: int, one: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number:,} {one if number == 1 else one + 's'}"


def span(seconds: float) -> str:
    """A duration, roughly."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def until(moment: datetime) -> str:
    """How long it is until a moment."""
    return span(max(0.0, (moment - datetime.now(UTC)).total_seconds()))


def when(moment: datetime) -> str:
    """A moment in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

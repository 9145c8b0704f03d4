"""The base of the client's exceptions, and of those for answers of status 400 and above."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec


class DarkroomError(Exception):
    """The base of everything that this client raises."""


class FieldError(msgspec.Struct, frozen=True):
    """One rule that a request broke."""

    code: str
    message: str
    pointer: str | None = None
    """JSON pointer (RFC 6901) into the body."""
    parameter: str | None = None
    """Name of a query, path, header or form parameter."""


class APIStatusError(DarkroomError):
    """The service answered with a problem (RFC 9457)."""

    known_code: ClassVar[str | None] = None
    known_status: ClassVar[int | None] = None
    advice: ClassVar[str | None] = None
    """What to do about it; None where the code is unknown and so is its status."""
    see: ClassVar[str | None] = None
    """An operation of the API that tells more."""
    retryable: bool = False
    """Whether the same request can succeed later, unchanged."""

    def __init__(
        self,
        *,
        status: int,
        code: str,
        title: str = "",
        detail: str | None = None,
        request_id: str | None = None,
        errors: tuple[FieldError, ...] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        said = detail or title or f"HTTP {status}"
        super().__init__(f"{said} [{code}, {status}, request {request_id or 'unknown'}]")
        self.status = status
        self.code = code
        """Stable: what a program may compare."""
        self.title = title
        self.detail = detail
        self.request_id = request_id
        """Identifies the request in the server's log."""
        self.errors = errors
        self.retry_after = retry_after
        """Seconds, or None."""
        self.headers = dict(headers or {})
        if status in (502, 504):  # a proxy's
            self.retryable = True

    @property
    def batch_id(self) -> str | None:
        """With `BatchRejected`: the failed batch, which keeps the whole report."""
        if self.code != "batch_rejected":
            return None
        return self.headers.get("location", "").rstrip("/").rpartition("/")[2] or None


_RETRY_AFTER = "after `Retry-After` seconds"

PROGRAM_WORDS = {
    "Send `Authorization: Bearer drk_…` with a valid key.": (
        "Save a valid key of this server with `darkroom login`, or set DARKROOM_API_KEY.",
        "Start the playground with a valid DARKROOM_API_KEY; `.darkroom/env` has the local one.",
    ),
    "ask an administrator for one": (
        "make one with `darkroom keys create`",
        "ask an administrator for one",
    ),
    "Check the ID; it may have been deleted.": (
        "Check the ID; it may have been deleted.",
        "It may have been deleted: reload the page to see what exists.",
    ),
    "Correct those fields.": ("Correct those options.", "Correct those fields."),
    "Cancel it or": ("Cancel it (`darkroom jobs cancel`) or", "Cancel it or"),
    "from its receipt": ("with `darkroom reproduce`", "with “Same seed again”"),
    "; upload large initial images first, with `POST /v1/uploads`": ("", ""),
    "submit with `on_error` set to `skip`": (
        "run only the valid ones with `--on-error skip`",
        "choose to skip invalid rows",
    ),
    " See GET /v1/usage.": (" See `darkroom usage`.", ""),
    _RETRY_AFTER: ("in a moment", "in a moment"),
}
"""Phrases of the catalogue's advice -> what the command line and the playground say instead: they
set a flag or press a button where a program sends a request."""


def advice_in(program: Literal["cli", "playground"], error: APIStatusError) -> str | None:
    """The advice for a user of one of the client's own programs, in the words of that program."""
    if error.advice is None:
        return None
    advice = error.advice + (f" See {error.see}." if error.see else "")
    if error.retry_after:
        wait = f"{error.retry_after:.0f} s"
        if _RETRY_AFTER in advice:
            advice = advice.replace(_RETRY_AFTER, f"in {wait}")
        elif error.status == 429:
            advice = f"Wait {wait}. {advice}"
    for phrase, (cli, playground) in PROGRAM_WORDS.items():
        advice = advice.replace(phrase, cli if program == "cli" else playground)
    return advice

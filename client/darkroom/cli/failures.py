"""Failures in plain words: the message, what to do about it, and the exit code."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Self

import msgspec

from darkroom.cli.output import Output, json_text
from darkroom.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    BatchRejected,
    ChecksumMismatch,
    ConfigurationError,
    DarkroomError,
    JobNotSucceeded,
    MalformedId,
    WaitTimeoutError,
    advice_in,
)

_MAX_SHOWN = 20
_PROBE_SECONDS = 2.0
"""How long to ask an address what is there."""


class ExitCode(IntEnum):
    """One code for each kind of outcome that a script may want to tell apart.

    They never change once released. `meaning` is for the documentation.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """A member with its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    DONE = 0, "Success"
    INTERNAL = 1, "A bug in the command line or the server (HTTP 500)"
    USAGE = 2, "Bad usage, or something local is missing: a file, the server's address"
    AUTH = 3, "The API key is missing, invalid or not allowed (HTTP 401, 403)"
    NOT_FOUND = 4, "Not found (HTTP 404)"
    INVALID = 5, "The server refused the request (any other HTTP 4xx)"
    CONFLICT = 6, "Not possible in the current state (HTTP 409)"
    LIMIT = 7, "Quota or rate limit reached (HTTP 429)"
    UNAVAILABLE = 8, "The server or a service it needs is down (no connection, other HTTP 5xx)"
    JOB_FAILED = 9, "The job, or one of the batch, failed, expired or was canceled"
    FINDING = 10, "`doctor` found a fault, or `reproduce` made a different image"
    TIMEOUT = 11, "`--timeout` has passed; the work continues"
    INTERRUPTED = 130, "Ctrl-C; work on the server continues"
    PIPE = 141, "The reader of stdout closed it"


class CliError(Exception):
    """A problem that the command line itself finds."""

    def __init__(
        self,
        message: str,
        exit_code: ExitCode,
        advice: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`facts` are extra fields for `--json`."""
        super().__init__(message)
        self.exit_code = exit_code
        self.advice = advice
        self.facts = facts or {}


_OPTION_OF = {
    "prompt": "PROMPT",
    "q": "QUERY",
    "num_images": "--n",
    "negative_prompt": "--negative",
    "guidance_scale": "--guidance",
    "true_cfg_scale": "--true-cfg",
    "prompt_syntax": "--weighted",
    "hires/scale": "--hires",
    "hires/strength": "--hires-strength",
    "hires/steps": "--hires-steps",
    "hires/upscaler": "--upscaler",
    "session_id": "--session",
    "resize_mode": "--resize",
    "loras": "--lora",
    "output_format": "--format",
    "output_quality": "--quality",
    "init_image": "--init",
    "mask_image": "--mask",
    "references": "--reference",
    "controls": "--control",
    "mask_from_alpha": "--mask",
    "masked_content": "--mask-fill",
    "padding_mask_crop": "--mask-crop",
    "created_after": "--since",
    "created_before": "--before",
    "expires_at": "--expires",
    "scopes": "--scope",
    "quotas": "--quota",
    "defaults": "--default",
    "url": "URL",
    "name": "NAME",
}
"""Request fields whose options have another name."""
_COMMAND_OF = {
    "GET /v1/models has each model's": "`darkroom models --json` has each model's",
    "GET /v1/models has": "`darkroom models` has",
    "GET /v1/loras has": "`darkroom loras` has",
}
"""What rules say of operations, and the command line instead."""


def option_of(place: str, options: Collection[str]) -> str:
    """The option or argument that set the field at a JSON pointer or query parameter.

    Where the running command has none for it, the place itself.
    """
    path = place.removeprefix("/")
    field, _slash, rest = path.partition("/")
    whole = _OPTION_OF.get(path)
    option = whole or _OPTION_OF.get(field, f"--{field.replace('_', '-')}")
    if option not in options:
        return place
    inside = [part for part in rest.split("/") if part and not part.isdecimal()]
    return option if whole else " ".join([option, *inside])


def in_options(message: str, options: Collection[str]) -> str:
    """A rule of the API in the words of the command line: `strength needs an init_image`.

    Only names with an underscore are replaced wherever they stand: `steps` may be a plain word.
    """

    def replaced(match: re.Match[str]) -> str:
        option = option_of(match["name"], options)
        return match[0] if option == match["name"] else option

    message = re.sub(r"\b(?:an? )?(?P<name>[a-z]+(?:_[a-z]+)+)\b(?!=)", replaced, message)
    message = re.sub(r"^(?P<name>[a-z]+)(?= (?:needs|and|goes|is of)\b)", replaced, message)
    message = re.sub(r"(--\S+), \1\b", r"\1", message)  # two fields of one option
    for operation, command in _COMMAND_OF.items():
        message = message.replace(operation, command)
    return message


@dataclass(frozen=True)
class Failure:
    """How a failed command ends."""

    exit_code: ExitCode
    code: str
    """Stable: one of the server's, or the command line's own."""
    message: str
    advice: str | None = None
    request_id: str | None = None
    errors: Sequence[tuple[str, str]] = ()
    """(where, message) of each broken rule."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Extra fields for `--json`."""

    def report(self, output: Output) -> None:
        """Print it to stderr."""
        if output.as_json:
            self._report_json(output)
            return
        from rich.markup import escape

        output.note(f"[bold red]Error:[/] {escape(self.message)} [dim]({self.code})[/]")
        for where, message in self.errors[:_MAX_SHOWN]:
            output.note(f"  [bold]{escape(where)}[/] {escape(message)}")
        if self.advice:
            output.note(f"[bold]What to do:[/] {escape(self.advice)}")
        if self.request_id:
            output.note(f"[dim]Request id: {escape(self.request_id)}[/]")

    def _report_json(self, output: Output) -> None:
        document = {
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "request_id": self.request_id,
            "errors": [{"where": where, "message": message} for where, message in self.errors],
            "exit_code": int(self.exit_code),
            **self.facts,
        }
        output.err.file.write(json_text({"error": document}) + "\n")


_BY_STATUS = {
    400: ExitCode.INVALID,
    401: ExitCode.AUTH,
    403: ExitCode.AUTH,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    429: ExitCode.LIMIT,
    500: ExitCode.INTERNAL,
}
_GATEWAY = (502, 503, 504)
_DOCTOR = " `darkroom doctor` shows whether a part is down."
_NOT_DARKROOM = "Is this the address of a Darkroom server? If so, it answers GET /healthz."


def explain(
    error: Exception, options: Collection[str] = (), url: str | None = None
) -> Failure | None:
    """The failure that an exception stands for; None if it should propagate.

    `options` are those of the failed command; `url` is the server it talked to.
    """
    if isinstance(error, CliError):
        code = error.exit_code.name.lower()
        return Failure(error.exit_code, code, str(error), error.advice, facts=error.facts)
    if isinstance(error, APIResponseValidationError) or (
        isinstance(error, APIStatusError) and error.code == "unknown"
    ):
        return _of_foreign_answer(error, url)
    if isinstance(error, APIStatusError):
        return _of_problem(error, options)
    if isinstance(error, MalformedId):
        return Failure(ExitCode.USAGE, "usage", str(error))
    if isinstance(error, DarkroomError):
        return _of_client(error)
    return _of_system(error)


def _of_system(error: Exception) -> Failure | None:
    if type(error).__module__.startswith("typer") or os.environ.get("DARKROOM_DEBUG"):
        return None
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
        return Failure(ExitCode.USAGE, "file", message, "Check the path and its permissions.")
    message = f"{type(error).__name__}: {error}"
    advice = "This is a bug. Set DARKROOM_DEBUG=1 to see where it is, and report it."
    return Failure(ExitCode.INTERNAL, "internal", message, advice)


def _of_foreign_answer(
    error: APIStatusError | APIResponseValidationError, url: str | None
) -> Failure:
    """For an answer that is not the API's, not even an error of the API."""
    exit_code, said = ExitCode.UNAVAILABLE, str(error)
    if isinstance(error, APIStatusError):
        exit_code = _BY_STATUS.get(error.status, exit_code)
        if error.status in _GATEWAY:
            advice = "A proxy answered instead of the server. Try again in a moment."
            return Failure(
                exit_code, "no_answer", f"{url or 'The address'} answered: {said}", advice
            )
        said = f"{url or 'The address'} answered HTTP {error.status}, but not as Darkroom's API"
    return Failure(exit_code, "unexpected_answer", said, identify_address(url))


def identify_address(url: str | None) -> str:
    """What to do about an address where something other than the API answers."""
    import httpx2

    try:
        is_streamlit = (
            url and httpx2.get(f"{url}/_stcore/health", timeout=_PROBE_SECONDS).text == "ok"
        )
    except (httpx2.HTTPError, httpx2.InvalidURL):
        is_streamlit = False
    if is_streamlit:
        return (
            "This is the playground's address. Set --url or DARKROOM_URL to the API's: `make run` "
            "prints both, and .darkroom/env has it; its default port is 8000."
        )
    return _NOT_DARKROOM


def _of_problem(error: APIStatusError, options: Collection[str]) -> Failure:
    fallback = ExitCode.UNAVAILABLE if error.status > 500 else ExitCode.INVALID
    advice = advice_in("cli", error)
    if error.status > 500:
        advice = (advice or "Try again in a moment.") + _DOCTOR
    if isinstance(error, BatchRejected) and error.batch_id:
        advice = f"{advice} All errors: darkroom batch errors {error.batch_id}"
    places = [each.pointer or each.parameter or "" for each in error.errors]
    errors = [
        (option_of(place, options), in_options(each.message, options))
        for place, each in zip(places, error.errors, strict=True)
    ]
    said = error.detail or error.title or f"HTTP {error.status}"
    if errors and said in (first := error.errors[0].message, f"{places[0]}: {first}"):
        where, message = errors.pop(0)
        said = ": ".join(filter(None, ("" if message.startswith(where) else where, message)))
    return Failure(
        _BY_STATUS.get(error.status, fallback),
        error.code,
        said,
        advice,
        error.request_id,
        errors,
        {"status": error.status, "errors": [msgspec.structs.asdict(each) for each in error.errors]},
    )


def _of_client(error: DarkroomError) -> Failure:
    if isinstance(error, ConfigurationError):
        advice = "Run `darkroom login`, or start a server with `make run`, then `. .darkroom/env`."
        return Failure(ExitCode.USAGE, "configuration", str(error), advice)
    if isinstance(error, JobNotSucceeded):
        return _of_job(error)
    if isinstance(error, WaitTimeoutError):
        resource = error.resource
        verb = "batch fetch" if resource.id.startswith("batch_") else "jobs watch"
        advice = f"The work continues. Follow it: darkroom {verb} {resource.id}"
        facts = {"id": resource.id, "state": resource.state}
        return Failure(ExitCode.TIMEOUT, "still_running", str(error), advice, facts=facts)
    if isinstance(error, APIConnectionError):
        advice = "Is the server running, and is this its address? `darkroom doctor` checks."
        return Failure(ExitCode.UNAVAILABLE, "no_answer", str(error), advice)
    if isinstance(error, ChecksumMismatch):
        return Failure(ExitCode.UNAVAILABLE, "damaged_download", str(error), "Try again.")
    return Failure(ExitCode.UNAVAILABLE, "unexpected_answer", str(error), _NOT_DARKROOM)


def _of_job(error: Any) -> Failure:
    job = error.job
    reason = job.error.message or job.error.code if job.error else f"It was {job.state}."
    return Failure(
        ExitCode.JOB_FAILED,
        job.error.code if job.error else job.state,
        f"{job.id} {job.state}: {reason}" if job.error else f"{job.id} is {job.state}.",
        f"{error.advice or ''} `darkroom jobs show {job.id}` shows its attempts; "
        f"`darkroom jobs retry {job.id}` runs it again with the same seeds.".lstrip(),
        facts={"job": dict(job.raw)},
    )

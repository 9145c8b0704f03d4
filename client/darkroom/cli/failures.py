"""What went wrong, in plain words: the message, what to do about it, and the exit code."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from darkroom.cli.exits import ExitCode

if TYPE_CHECKING:
    from darkroom.cli.output import Output
    from darkroom.errors import ApiError, DarkroomError, UnexpectedAnswer

_MAX_SHOWN = 20


class CliError(Exception):
    """Something that the command line itself finds wrong."""

    def __init__(
        self,
        message: str,
        exit_code: ExitCode,
        advice: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """`facts` are more for `--json`."""
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
    "session_id": "--session",
    "output_format": "--format",
    "init_image": "--init",
    "created_after": "--since",
    "created_before": "--before",
    "expires_at": "--expires",
    "scopes": "--scope",
    "quotas": "--quota",
    "defaults": "--default",
    "url": "URL",
    "name": "NAME",
}
"""Fields of requests whose options are called differently here."""


def option_of(place: str, options: Collection[str]) -> str:
    """The option or argument of the running command that gave the field at a JSON pointer or in a
    query parameter; the place itself where no option did."""
    field, _slash, rest = place.removeprefix("/").partition("/")
    option = _OPTION_OF.get(field, f"--{field.replace('_', '-')}")
    if option not in options:
        return place
    return option if not rest or rest.isdecimal() else f"{option} {rest}"


@dataclass(frozen=True)
class Failure:
    """How a command ends that did not work."""

    exit_code: ExitCode
    code: str
    """Stable: the server's, or one of the command line's own."""
    message: str
    advice: str | None = None
    request_id: str | None = None
    errors: Sequence[tuple[str, str]] = ()
    """(where, message) of each rule that was broken."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """More for `--json`."""

    def report(self, output: "Output") -> None:
        """Say it on stderr."""
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

    def _report_json(self, output: "Output") -> None:
        import json

        document = {
            "code": self.code,
            "message": self.message,
            "advice": self.advice,
            "request_id": self.request_id,
            "errors": [{"where": where, "message": message} for where, message in self.errors],
            "exit_code": int(self.exit_code),
            **self.facts,
        }
        output.err.file.write(json.dumps({"error": document}, ensure_ascii=False) + "\n")


_ADVICE = {
    "unauthenticated": "Check DARKROOM_API_KEY (or .darkroom/env): the key may be mistyped, "
    "revoked or expired, or belong to another server.",
    "insufficient_scope": "Use a key with that scope; `darkroom keys create` makes one.",
    "model_not_allowed": "`darkroom usage` shows the models that this key may use.",
    "size_not_allowed": "`darkroom usage` shows how many pixels this key may ask for.",
    "not_found": "Check the id; what belongs to another tenant's key does not exist for this one.",
    "object_missing": "`darkroom reproduce` can make the picture again.",
    "job_not_cancelable": "The job has ended; `darkroom jobs show` says how.",
    "job_not_retryable": "Only failed, expired and canceled jobs can be tried again.",
    "job_not_finished": "Cancel it first: `darkroom jobs cancel`.",
    "nothing_to_retry": "Every line has become a picture, or still can.",
    "rate_limited": "Slow down; `darkroom usage` shows the limits of this key.",
    "too_many_jobs": "Wait until jobs of this key end; `darkroom jobs list --state running`.",
    "queued_cost_exceeded": "Wait until queued jobs of this key have run; see `darkroom usage`.",
    "upload_bytes_exceeded": "Delete some with `darkroom delete upl_…`; see `darkroom usage`.",
    "gpu_seconds_exceeded": "Wait until jobs end, or until 00:00 UTC; see `darkroom usage`.",
    "embedding_unavailable": "Search needs a CPU worker; `darkroom doctor` looks for one.",
    "overloaded": "Try again later: the server has more work than it takes.",
    "receipt_missing": "Only files that Darkroom made, and nobody has converted, have a receipt.",
    "prompt_unknown": "Search by words instead, or by a picture that Darkroom made.",
    "internal_error": "A bug of the server: report it with the request id.",
}
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


def explain(
    error: Exception, options: Collection[str] = (), url: str | None = None
) -> Failure | None:
    """The failure that an exception stands for; None where it is to go on as it is.

    `options` are those of the command that failed, to which `url` was the server's address.
    """
    from darkroom.errors import ApiError, DarkroomError, MalformedId, UnexpectedAnswer

    if isinstance(error, CliError):
        code = error.exit_code.name.lower()
        return Failure(error.exit_code, code, str(error), error.advice, facts=error.facts)
    if isinstance(error, UnexpectedAnswer) or (
        isinstance(error, ApiError) and error.code == "unknown"
    ):
        return _of_stranger(error, url)
    if isinstance(error, ApiError):
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
    advice = "This is a bug. Set DARKROOM_DEBUG=1 to see where, and report it."
    return Failure(ExitCode.INTERNAL, "internal", message, advice)


def _of_stranger(error: "ApiError | UnexpectedAnswer", url: str | None) -> Failure:
    """What answered does not speak as the API does, not even to say what is wrong."""
    from darkroom.errors import ApiError

    exit_code, said = ExitCode.UNAVAILABLE, str(error)
    if isinstance(error, ApiError):
        exit_code = _BY_STATUS.get(error.status, exit_code)
        if error.status in _GATEWAY:
            advice = "A proxy answered for the server. Try again in a moment."
            return Failure(exit_code, "no_answer", f"{url or 'It'} answered: {said}", advice)
        said = (
            f"{url or 'The address'} answered HTTP {error.status}, and not as Darkroom's API does"
        )
    return Failure(exit_code, "unexpected_answer", said, whose_address(url))


def whose_address(url: str | None) -> str:
    """What to do about an address at which something else than the API answers."""
    import httpx2

    try:
        is_streamlit = url and httpx2.get(f"{url}/_stcore/health", timeout=2).text == "ok"
    except (httpx2.HTTPError, httpx2.InvalidURL):
        is_streamlit = False
    if is_streamlit:
        return (
            "This is the playground's address. Give the API's, as --url or in DARKROOM_URL: "
            "`make run` prints both, and .darkroom/env has it; by default its port is 8000."
        )
    return "Is this the address of a Darkroom server? Its /healthz would answer as one."


def _of_problem(error: "ApiError", options: Collection[str]) -> Failure:
    from darkroom.errors import BatchRejected

    fallback = ExitCode.UNAVAILABLE if error.status > 500 else ExitCode.INVALID
    advice = _ADVICE.get(error.code)
    if advice is None and error.status > 500:
        advice = "Try again in a moment; `darkroom doctor` says which part is missing."
    if error.retry_after and error.status == 429:
        advice = f"Wait {error.retry_after:.0f} s. {advice or ''}".rstrip()
    if isinstance(error, BatchRejected) and error.batch_id:
        advice = (
            "Correct the lines and run it again, or run the good ones with --on-error skip. "
            f"All errors: darkroom batch errors {error.batch_id}"
        )
    places = [each.pointer or each.parameter or "" for each in error.errors]
    errors = [
        (option_of(place, options), each.message)
        for place, each in zip(places, error.errors, strict=True)
    ]
    said = error.detail or error.title or f"HTTP {error.status}"
    if errors and said in (errors[0][1], f"{places[0]}: {errors[0][1]}"):
        said = ": ".join(filter(None, errors.pop(0)))
    return Failure(
        _BY_STATUS.get(error.status, fallback),
        error.code,
        said,
        advice,
        error.request_id,
        errors,
        {"status": error.status, "errors": [asdict(each) for each in error.errors]},
    )


def _of_client(error: "DarkroomError") -> Failure:
    from darkroom import errors

    if isinstance(error, errors.ConfigurationError):
        advice = "Start a server with `make run`, then `. .darkroom/env`; or give --url, --api-key."
        return Failure(ExitCode.USAGE, "configuration", str(error), advice)
    if isinstance(error, errors.JobNotSucceeded):
        return _of_job(error)
    if isinstance(error, errors.StillRunning):
        found = error.resource
        verb = "batch fetch" if found.id.startswith("batch_") else "jobs watch"
        advice = f"It goes on. Follow it: darkroom {verb} {found.id}"
        facts = {"id": found.id, "state": found.state}
        return Failure(ExitCode.TIMEOUT, "still_running", str(error), advice, facts=facts)
    if isinstance(error, errors.NoAnswer):
        advice = "Is the server running, and is this its address? `darkroom doctor` looks."
        return Failure(ExitCode.UNAVAILABLE, "no_answer", str(error), advice)
    if isinstance(error, errors.DamagedDownload):
        return Failure(ExitCode.UNAVAILABLE, "damaged_download", str(error), "Try again.")
    advice = "Is this the address of a Darkroom server? Its /healthz would answer as one."
    return Failure(ExitCode.UNAVAILABLE, "unexpected_answer", str(error), advice)


def _of_job(error: Any) -> Failure:
    job = error.job
    reason = job.error.message or job.error.code if job.error else f"It was {job.state}."
    return Failure(
        ExitCode.JOB_FAILED,
        job.error.code if job.error else job.state,
        f"{job.id} {job.state}: {reason}" if job.error else f"{job.id} is {job.state}.",
        f"`darkroom jobs show {job.id}` shows its attempts; `darkroom jobs retry {job.id}` "
        "tries again, with the same seeds.",
        facts={"job": dict(job.raw)},
    )

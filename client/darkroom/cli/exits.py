"""The exit codes of `darkroom`: one for each kind of thing that a script wants to tell apart."""

from enum import IntEnum


class ExitCode(IntEnum):
    """They never change once released."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    AUTH = 3
    NOT_FOUND = 4
    INVALID = 5
    CONFLICT = 6
    LIMIT = 7
    UNAVAILABLE = 8
    JOB_FAILED = 9
    FINDING = 10
    TIMEOUT = 11
    INTERRUPTED = 130
    PIPE = 141

    @property
    def meaning(self) -> str:
        """One line for the documentation."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "It worked.",
    ExitCode.INTERNAL: "A bug, of the command line or of the server (HTTP 500). Please report it.",
    ExitCode.USAGE: "The command was not understood, or something local is missing: "
    "a file, an option, the address of the server.",
    ExitCode.AUTH: "The API key is missing, wrong, or may not do this (HTTP 401, 403).",
    ExitCode.NOT_FOUND: "There is no such job, image, batch, … (HTTP 404).",
    ExitCode.INVALID: "The server refused the request: a value breaks a rule (HTTP 4xx).",
    ExitCode.CONFLICT: "It cannot be done in the present state (HTTP 409).",
    ExitCode.LIMIT: "A quota or rate limit of the key is used up (HTTP 429).",
    ExitCode.UNAVAILABLE: "The server, or a part that it needs, does not answer "
    "(no connection, HTTP 5xx but 500).",
    ExitCode.JOB_FAILED: "The job failed, expired or was canceled; of a batch, at least one did.",
    ExitCode.FINDING: "The question was answered, and the answer is bad: "
    "`doctor` found a fault, `reproduce` made a different picture.",
    ExitCode.TIMEOUT: "The time given with `--timeout` is over; the work goes on.",
    ExitCode.INTERRUPTED: "Ctrl-C. What runs on the server goes on; stderr says how to go on here.",
    ExitCode.PIPE: "Whoever read stdout stopped reading, as in `darkroom jobs list | head -1`.",
}

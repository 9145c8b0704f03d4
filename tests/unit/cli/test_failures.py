"""Every failure has an exit code, a plain message, and advice."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated, Any

import pytest
import typer
from rich.console import Console
from typer.main import get_command

from darkroom import APIConnectionError, ConfigurationError, WaitTimeoutError, errors
from darkroom.cli.app import app as program
from darkroom.cli.command import Cli, command
from darkroom.cli.failures import CliError, ExitCode, explain, in_options, option_of
from darkroom.cli.output import Output
from darkroom.types.requests import HiresOptions, JobOptions

EXIT_OF_STATUS = {
    400: ExitCode.INVALID,
    401: ExitCode.AUTH,
    403: ExitCode.AUTH,
    404: ExitCode.NOT_FOUND,
    405: ExitCode.INVALID,
    409: ExitCode.CONFLICT,
    413: ExitCode.INVALID,
    422: ExitCode.INVALID,
    429: ExitCode.LIMIT,
    500: ExitCode.INTERNAL,
    502: ExitCode.UNAVAILABLE,
    503: ExitCode.UNAVAILABLE,
}


def problem(status: int, code: str = "some_code") -> errors.APIStatusError:
    document = {
        "code": code,
        "title": "A title",
        "detail": "What is wrong.",
        "request_id": "r1",
        "errors": [{"pointer": "/steps", "code": "too_big", "message": "Too big."}],
    }
    return errors.api_error(status, document, {}, 7.0)


@pytest.mark.parametrize(("status", "expected"), EXIT_OF_STATUS.items())
def test_each_status_has_its_exit_code(status: int, expected: ExitCode) -> None:
    failure = explain(problem(status))
    assert failure is not None
    assert failure.exit_code is expected
    assert (failure.message, failure.request_id) == ("What is wrong.", "r1")


def test_a_limit_says_how_long_to_wait() -> None:
    failure = explain(problem(429, "rate_limited"))
    assert failure is not None
    assert failure.advice is not None
    assert failure.advice.startswith("Wait 7 s.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigurationError("no address"), ExitCode.USAGE),
        (APIConnectionError("silence"), ExitCode.UNAVAILABLE),
        (errors.APIResponseValidationError("a web page"), ExitCode.UNAVAILABLE),
        (CliError("no such thing", ExitCode.NOT_FOUND), ExitCode.NOT_FOUND),
        (FileNotFoundError(2, "No such file", "x.png"), ExitCode.USAGE),
        (KeyError("a bug"), ExitCode.INTERNAL),
    ],
)
def test_each_cause_has_its_exit_code(error: Exception, expected: ExitCode) -> None:
    failure = explain(error)
    assert failure is not None
    assert failure.exit_code is expected
    if not isinstance(error, CliError):
        assert failure.advice


def test_a_wait_that_was_too_short_is_no_failure_of_the_job() -> None:
    class Waiting:
        id, state = "job_1", "running"

    failure = explain(WaitTimeoutError(Waiting()))  # type: ignore[arg-type]
    assert failure is not None
    assert failure.exit_code is ExitCode.TIMEOUT


def report(error: Exception, *, as_json: bool) -> str:
    output = Output(as_json=as_json)
    said = io.StringIO()
    output.err = Console(file=said, width=200)
    failure = explain(error)
    assert failure is not None
    failure.report(output)
    return said.getvalue()


def test_the_report_has_code_fields_advice_and_request_id() -> None:
    said = report(problem(422, "validation_failed"), as_json=False)
    for part in ("What is wrong.", "(validation_failed)", "/steps Too big.", "Request id: r1"):
        assert part in said


def test_the_report_does_not_take_words_for_markup() -> None:
    assert "[red]x[/red]" in report(CliError("[red]x[/red]", ExitCode.USAGE), as_json=False)


def test_the_report_for_programs_is_one_json_document() -> None:
    said = json.loads(report(problem(404, "not_found"), as_json=True))["error"]
    assert said["code"] == "not_found"
    assert said["exit_code"] == 4
    assert said["status"] == 404
    assert said["errors"] == [
        {"code": "too_big", "message": "Too big.", "pointer": "/steps", "parameter": None}
    ]


def test_an_error_names_the_option_that_was_given() -> None:
    failure = explain(invalid("/num_images", "/metadata/team"), {"--n", "--metadata"})
    assert failure is not None
    assert failure.message == "--n: Too large."
    assert failure.errors == [("--metadata team", "Too large.")]
    # A command that has no such option was given the field in another way, as `jobs submit` is.
    failure = explain(invalid("/num_images"), set())
    assert failure is not None
    assert failure.message == "/num_images: Too large."


NOT_OPTIONS = {
    *("previews", "preserve_unmasked", "seeds", "start_within", "finish_within", "webhook"),
}
"""Fields of a submission that `generate` has no option for."""


def test_every_field_that_generate_sends_has_its_option() -> None:
    found: Any = get_command(program)
    options = {opt for each in found.commands["generate"].params for opt in each.opts} | {"PROMPT"}
    fields = {*JobOptions.__annotations__, "prompt"} - NOT_OPTIONS
    nested = {f"hires/{name}" for name in HiresOptions.__annotations__}
    places = [f"/{name}" for name in fields | nested]
    assert [place for place in places if option_of(place, options) not in options] == []
    for place, option in {
        "/loras/0/scale": "--lora scale",
        "/hires/scale": "--hires",
        "/hires/strength": "--hires-strength",
        "/seeds/3": "/seeds/3",
    }.items():
        assert option_of(place, options) == option


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("strength needs an init_image.", "--strength needs --init."),
        ("mask_blur needs a mask_image, mask_from_alpha or expand.",
         "--mask-blur needs --mask or expand."),
        ("demo takes 50 steps at most.", "demo takes 50 steps at most."),
        ("There is no LoRA 'x'. GET /v1/loras has them all.",
         "There is no LoRA 'x'. `darkroom loras` has them all."),
    ],
)  # fmt: skip
def test_rules_are_said_in_the_words_of_the_command_line(said: str, shown: str) -> None:
    assert in_options(said, {"--strength", "--init", "--mask", "--mask-blur", "--steps"}) == shown


def invalid(*pointers: str) -> errors.APIStatusError:
    entries = [{"pointer": each, "code": "too_large", "message": "Too large."} for each in pointers]
    document = {
        "code": "validation_failed", "detail": f"{pointers[0]}: Too large.", "errors": entries
    }  # fmt: skip
    return errors.api_error(422, document, {}, None)


def test_options_are_known_under_their_names_on_the_command_line() -> None:
    seen: list[frozenset[str]] = []
    app = typer.Typer()

    @command(app, "probe")
    def probe(
        cli: Cli,
        prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
        count: Annotated[int, typer.Option("--n", "-n")] = 1,
        min_score: Annotated[float, typer.Option(min=0)] = 0,
    ) -> None:
        seen.append(cli.options)

    app(["a hat"], standalone_mode=False)
    assert seen[0] >= {"PROMPT", "--n", "--min-score"}


@pytest.mark.parametrize("status", [404, 405])
def test_an_answer_that_is_no_problem_is_not_called_unknown(status: int) -> None:
    error = errors.api_error(status, None, {}, None)
    failure = explain(error, url="http://127.0.0.1:1")
    assert failure is not None
    assert failure.code == "unexpected_answer"
    assert f"http://127.0.0.1:1 answered HTTP {status}" in failure.message
    assert failure.advice


def test_the_playgrounds_address_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("darkroom.cli.failures._PROBE_SECONDS", 60.0)

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok" if self.path == "/_stcore/health" else b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        failure = explain(errors.api_error(405, None, {}, None), url=url)
        server.shutdown()
    assert failure is not None
    assert failure.advice is not None
    assert "playground's address" in failure.advice

"""Output reads well, and text that users wrote is never taken for rich's markup."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from msgspec import structs
from rich.console import Console
from typer.main import get_command

from darkroom import Client, QueueDepth, Worker, WorkerModel
from darkroom.cli import watch
from darkroom.cli.batch_run import BatchView
from darkroom.cli.command import Cli
from darkroom.cli.failures import ExitCode, Failure
from darkroom.cli.output import Column, Output, age, ago, duration, plain, state_markup
from darkroom.cli.previews import PreviewMode
from darkroom.cli.worker_checks import check_queue
from darkroom.decoding import decode
from darkroom.types import Drain
from darkroom.types.batches import Batch
from darkroom.types.jobs import ErrorInfo
from tests.unit.cli.test_batch_folder import result

HOSTILE = "a [/b] and a [red]hat"
COUNTED = ("queued", "running", "failed", "expired", "canceled")


def test_a_warning_may_quote_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).warning(f"not read: {HOSTILE!r}", "prompt_truncated")
    assert capsys.readouterr().err == f"Note: not read: {HOSTILE!r} (prompt_truncated)\n"


def test_an_empty_list_may_name_a_session(capsys: pytest.CaptureFixture[str]) -> None:
    columns: list[Column[str]] = [Column("it", str)]
    Output(as_json=False).rows([], columns, empty=f"Nothing in {HOSTILE}.")
    assert capsys.readouterr().err == f"Nothing in {HOSTILE}.\n"


def test_a_prompt_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "a \x1b]0;title\x07\x1b[2J fox \x9b31m"
    columns: list[Column[str]] = [Column("prompt", str)]
    piped = Output(as_json=False)
    piped.rows([prompt], columns, empty="")
    piped.facts([("prompt", prompt)], {})
    piped.warning(prompt)
    monkeypatch.setenv("FORCE_COLOR", "1")
    terminal = Output(as_json=False)
    terminal.rows([prompt], columns, empty="")
    terminal.facts([("prompt", prompt)], {})
    as_json = Output(as_json=True)
    as_json.document({"prompt": prompt, "delete": "\x7f"})
    as_json.line({"prompt": prompt, "delete": "\x7f"})
    Failure(ExitCode.INVALID, "invalid", f"{prompt}\x7f").report(as_json)
    said = capsys.readouterr()
    for hostile in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\x7f"):
        assert hostile not in said.out + said.err


def test_a_line_of_a_batch_may_have_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    ended = {**dict.fromkeys(COUNTED, 0), "total": 1, "succeeded": 1}
    batch = {
        **{"id": "batch_1", "state": "running", "sequence": 1, "priority": 0, "fraction": 1.0},
        **{"paused": False, "cancel_requested": False, "source": "inline", "on_error": "reject"},
        **{"lines": 1, "invalid_lines": 0, "cost": 1, "created_at": "2026-11-22T10:00:00Z"},
        "counts": ended,
        "images": {"total": 1, "done": 1},
    }
    view = BatchView(output, decode(Batch, batch))
    view.ended(result(HOSTILE), 1)
    message = "no \x1b]0;title\x07 \x9b31m room"
    failed = structs.replace(
        result("b"), state="failed", error=ErrorInfo(code="x", message=message)
    )
    view.ended(failed, 1)
    output.out.print(view._drawn())
    said = capsys.readouterr().out
    assert HOSTILE in said
    assert not {"\x1b", "\x07", "\x9b"} & set(said)


MODELS: list[Column[str]] = [
    Column("model", str),
    Column("device", lambda _: "by 1 on a processor with a long name"),
    Column("size", lambda _: "128×128, up to 4096×4096"),
    Column("schedulers", lambda _: "ddim, euler, heun, dpmpp-2m-karras, unipc", wrap=True),
]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_of_any_width_shows_every_value_whole(width: int) -> None:
    output, shown = Output(as_json=False), io.StringIO()
    output.out = Console(file=shown, width=width, force_terminal=True, color_system=None)
    output.rows(["demo", "job_01m8d7f373fj48g4gsve9k31vd"], MODELS, empty="")
    lines = shown.getvalue().splitlines()
    words = " ".join(shown.getvalue().split())
    assert max(map(len, lines)) <= width
    assert "…" not in words
    assert "job_01m8d7f373fj48g4gsve9k31vd" in words
    if width >= 80:
        assert words.count("by 1 on a processor with a long name") == 2
        # No strip of a few letters a line.
        assert len(lines) <= 8


def table(columns: list[Column[str]], width: int = 80) -> list[str]:
    output, shown = Output(as_json=False), io.StringIO()
    output.out = Console(file=shown, width=width, force_terminal=True, color_system=None)
    output.rows(["job_01m8d7f373fj48g4gsve9k31vd"], columns, empty="")
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def test_a_narrow_table_leaves_out_what_matters_least() -> None:
    columns: list[Column[str]] = [
        Column("job", str),
        Column("state", lambda _: "succeeded"),
        Column("session", lambda _: "default", drop=1),
        Column("device", lambda _: "NVIDIA H100 80GB HBM3", drop=2),
        Column("prompt", lambda _: "a lake", wrap=True),
    ]
    assert len(table(columns)[0]) <= 80
    assert table(columns)[0].split() == ["job", "state", "session", "prompt"]
    assert table(columns, 120)[0].split() == ["job", "state", "session", "device", "prompt"]
    assert table(columns, 45)[0].split() == ["job_01m8d7f373fj48g4gsve9k31vd"], "one below another"


def test_a_long_prompt_is_cut_to_its_lines() -> None:
    prompt = "purple mountains at sunset, a lake with reeds and boats, and [b]more[/b] beside"
    columns: list[Column[str]] = [
        Column("job", str),
        Column("state", lambda _: "succeeded"),
        Column("prompt", lambda _: prompt, wrap=True, lines=2),
    ]
    rows = table(columns, 70)
    assert len(rows) == 4
    assert max(map(len, rows)) <= 70
    assert rows[-1].endswith("…")
    whole = table([columns[0], Column("prompt", lambda _: HOSTILE, wrap=True, lines=2)])
    assert whole[-1].endswith(HOSTILE)


def test_ages_in_tables_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    monkeypatch.setattr("darkroom.cli.output.datetime", SimpleNamespace(now=now.astimezone))
    seconds = (7, 125, 7_300, 400_000, -30)
    assert [age(now - timedelta(seconds=each)) for each in seconds] == [
        *("7s", "2m", "2h", "4d", "0s")
    ]
    assert age(None) == ""


def test_durations_and_ages_read_well() -> None:
    assert [duration(each) for each in (0.0123, 3.21, 59, 600, 5400, 200_000)] == [
        "12.3 ms",
        "3.21 s",
        "59.0 s",
        "10 minutes",
        "1 hour and 30 minutes",
        "2 days and 8 hours",
    ]
    now = datetime.now(UTC)
    assert ago(now + timedelta(minutes=5, seconds=1)) == "in 5 minutes"
    assert ago(now - timedelta(hours=3)) == "3 hours ago"
    assert ago(None) == ""


def test_json_has_what_json_can_hold() -> None:
    made = datetime(2026, 11, 22, tzinfo=UTC)
    assert plain({"made": made, "path": Path("a/b"), "sizes": (1, 2)}) == {
        "made": "2026-11-22T00:00:00Z",
        "path": "a/b",
        "sizes": [1, 2],
    }


def test_watch_says_at_once_that_it_is_refused_and_asks_again_within_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([httpx2.Response(200, json={"data": [], "has_more": False})])
    refusal = {"code": "rate_limited", "title": "Too many requests"}

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.path != "/v1/jobs":
            return httpx2.Response(403, json={"code": "forbidden", "title": "No operator"})
        refused = httpx2.Response(429, json=refusal, headers={"Retry-After": "3600"})
        return next(answers, refused)

    screen, sleeps = io.StringIO(), []

    def sleep(seconds: float) -> None:
        sleeps.append((seconds, "Too many requests" in screen.getvalue()))
        if len(sleeps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("darkroom.cli.watch.time", SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("TERM", "xterm")
    cli = Cli(get_command(watch.app))
    cli.output = Output(as_json=False)
    cli.output.out = Console(file=screen, width=100, force_terminal=True)
    with Client("http://x", "drk_a_b", retries=0, transport=httpx2.MockTransport(answer)) as client:
        watch._follow(cli, watch._Source(client), 2.0, PreviewMode.OFF)
    assert sleeps == [(2.0, False), (60.0, True)]


def test_a_worker_at_work_or_at_fault_has_its_colour_in_every_table() -> None:
    assert state_markup("busy") == "[cyan]busy[/]"
    assert state_markup("faulty") == "[red]faulty[/]"


def test_watch_asks_once_for_a_thumbnail_that_is_gone() -> None:
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(404, json={"code": "image_not_found", "title": "No image"})

    with Client("http://x", "drk_a_b", retries=0, transport=httpx2.MockTransport(answer)) as client:
        source = watch._Source(client)
        for _ in range(2):
            assert source.thumbnail("img_1") is None
            source.keep({"img_1"})
    assert len(asked) == 1


# --- What the doctor says of a queue, and what it advises ---


def queue(
    queue_class: str = "interactive", queued: int = 3, age: float | None = 600.0
) -> QueueDepth:
    return QueueDepth(
        model="sd21", queue_class=queue_class, queued=queued, running=2, oldest_age_seconds=age
    )


def worker(state: str, model: str = "sd21", model_state: str = "warm") -> Worker:
    drain = Drain(requested_at=datetime(2026, 1, 31, tzinfo=UTC)) if state == "draining" else None
    models = (WorkerModel(name=model, state=model_state),)
    return Worker(name="gpu-7", kind="gpu", state=state, models=models, drain=drain)


@pytest.mark.parametrize("workers", [None, []], ids=["unknown", "none"])
def test_a_queue_is_well_while_nobody_waits_long(workers: list[Worker] | None) -> None:
    for each in (queue(queued=0, age=None), queue(age=5.0)):
        check = check_queue(each, workers, moves=False)
        assert (check.state, check.advice) == ("ok", None)
    finding = check_queue(queue(age=5.0), workers, moves=False).finding
    assert finding == "sd21, interactive: 3 waiting, the oldest for 5.00 s, 2 running"


@pytest.mark.parametrize(
    ("workers", "moves", "advice"),
    [
        ([], False, "darkroom-server worker generate --model sd21"),
        ([worker("ready", "other")], False, "darkroom-server worker generate --model sd21"),
        (
            [worker("ready", model_state="broken")],
            False,
            "darkroom-server worker generate --model sd21",
        ),
        ([worker("faulty")], False, "darkroom-server worker generate --model sd21"),
        ([worker("draining")], True, "darkroom workers resume gpu-7"),
        ([worker("ready")], False, "nothing runs"),
        ([worker("draining"), worker("busy")], True, "another worker"),
        (None, False, "Redis is unavailable"),
    ],
)
def test_where_the_oldest_waits_long_it_says_what_to_do(
    workers: list[Worker] | None, moves: bool, advice: str
) -> None:
    check = check_queue(queue(), workers, moves=moves)
    assert check.state == "warning"
    assert advice in (check.advice or "")
    assert "oldest for 10 minutes" in check.finding


def test_bulk_jobs_may_wait_as_long_as_their_model_is_at_work() -> None:
    assert check_queue(queue("bulk"), [worker("busy")], moves=True).state == "ok"
    assert check_queue(queue("bulk"), [worker("ready")], moves=False).state == "warning"
    assert check_queue(queue("bulk"), [], moves=True).state == "warning"

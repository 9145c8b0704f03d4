"""What users have written is shown as it is, never read as rich's markup."""

import io

import pytest
from rich.console import Console

from darkroom.cli.batch_view import BatchView
from darkroom.cli.output import Column, Output
from darkroom.decoding import decode
from darkroom.types.batches import Batch
from tests.unit.cli.test_batch_folder import result

HOSTILE = "a [/b] and a [red]hat"
COUNTED = ("queued", "running", "failed", "expired", "canceled")


def test_a_warning_may_quote_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).warning(f"not read: {HOSTILE!r}", "prompt_truncated")
    assert capsys.readouterr().err == f"Note: not read: {HOSTILE!r} (prompt_truncated)\n"


def test_an_empty_list_may_name_a_session(capsys: pytest.CaptureFixture[str]) -> None:
    columns: list[Column[str]] = [Column("it", str)]
    Output(as_json=False).rows([], columns, nothing=f"Nothing in {HOSTILE}.")
    assert capsys.readouterr().err == f"Nothing in {HOSTILE}.\n"


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
    view.came(result(HOSTILE), 1)
    output.out.print(view._drawn())
    assert HOSTILE in capsys.readouterr().out


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
    output.rows(["demo", "job_01m8d7f373fj48g4gsve9k31vd"], MODELS, nothing="")
    lines = shown.getvalue().splitlines()
    words = " ".join(shown.getvalue().split())
    assert max(map(len, lines)) <= width
    assert "…" not in words
    assert "job_01m8d7f373fj48g4gsve9k31vd" in words
    if width >= 80:
        assert words.count("by 1 on a processor with a long name") == 2
        # No strip of a few letters a line.
        assert len(lines) <= 8

"""What users have written is shown as it is, never read as rich's markup."""

import pytest

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

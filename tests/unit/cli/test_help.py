"""The help pages: complete, and quick to show."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from darkroom import extras
from darkroom.cli import __main__ as program
from darkroom.cli import batches, options
from darkroom.cli.app import app
from darkroom.cli.failures import ExitCode
from tests.processes import PROJECT


def commands(group: Any) -> Iterator[Any]:
    for found in group.commands.values():
        yield from commands(found) if hasattr(found, "commands") else [found]


def test_the_guide_lists_every_exit_code() -> None:
    guide = (PROJECT / "docs/cli.md").read_text()
    for code in ExitCode:
        assert f"| {code.value} | {code.meaning} |" in guide


def test_every_command_and_every_option_is_explained() -> None:
    silent = [
        f"{found.name} {parameter.name}"
        for found in commands(get_command(app))
        for parameter in found.params
        if not parameter.help and parameter.name != "help"
    ]
    assert silent == []
    assert all(found.help for found in commands(get_command(app)))


def test_no_bracket_of_a_help_text_is_taken_for_markup() -> None:
    helps = [each.help or "" for found in commands(get_command(app)) for each in found.params]
    shown = [Text.from_markup(text).plain for text in helps]
    assert shown == [text.replace("\\[", "[") for text in helps]


def test_every_command_can_answer_in_json() -> None:
    for found in commands(get_command(app)):
        assert "--json" in [name for each in found.params for name in each.opts], found.name


def test_help_imports_neither_the_client_nor_pillow_nor_live_displays() -> None:
    heavy = ("httpx2", "PIL", "rich.live", "http.server", "streamlit")
    script = f"import sys, darkroom.cli.app; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_its_libraries_the_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", {"rich": object(), "humanize": object()}.get)
    with pytest.raises(SystemExit) as ended:
        program.run()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "typer is not installed" in said
    assert f"{sys.executable} -m pip install " in said
    assert "./client" not in said


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["genrate", "x"], "generate"),
        (["jobs", "lits"], "list"),
        (["generate", "x", "--seeed", "3"], "--seed"),
    ],
)
def test_a_misspelt_command_or_option_is_recognised(words: list[str], meant: str) -> None:
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == ExitCode.USAGE
    assert meant in done.stderr


# --- What people type: times, pairs, and what the shell completes ---


@pytest.mark.parametrize(("text", "back"), [("90m", 1.5), ("36h", 36), ("7d", 168)])
def test_times_may_be_ages(text: str, back: float) -> None:
    distance = datetime.now(UTC) - options.moment(text)
    assert abs(distance - timedelta(hours=back)) < timedelta(minutes=1)


def test_times_without_a_zone_are_local() -> None:
    assert options.moment("2026-11-22T10:00") == datetime(2026, 11, 22, 10).astimezone()
    assert options.moment("2026-11-22T10:00+00:00") == datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "", "h", "-3h", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.moment(text)


def test_pairs_have_a_name() -> None:
    assert options.pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for text in ("a", "=1", ""):
        with pytest.raises(typer.BadParameter):
            options.pair(text)


def test_completion_without_a_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DARKROOM_API_KEY", "drk_none")
    assert options.complete_model("") == []
    assert options.complete_job("job_") == []


def test_a_column_may_be_several_fields_or_none() -> None:
    mapped = batches._columns(["sku=custom_id", "sku=metadata.sku", "model="])
    assert mapped == {"sku": ["custom_id", "metadata.sku"], "model": None}

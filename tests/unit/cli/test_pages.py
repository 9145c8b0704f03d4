"""The help pages: written where they should be, complete, and quick to get."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from darkroom import extras
from darkroom.cli import main
from darkroom.cli.app import app
from darkroom.cli.reference import write
from tests.processes import PROJECT


def commands(group: Any) -> Iterator[Any]:
    for found in group.commands.values():
        yield from commands(found) if hasattr(found, "commands") else [found]


def test_the_page_in_the_documentation_is_what_the_commands_say() -> None:
    page = (PROJECT / "docs" / "cli" / "reference.md").read_text("utf-8")
    assert page == write(), "run: python -m darkroom.cli.reference docs/cli/reference.md"


def test_every_command_and_every_option_is_explained() -> None:
    silent = [
        f"{found.name} {parameter.name}"
        for found in commands(get_command(app))
        for parameter in found.params
        if not parameter.help and parameter.name != "help"
    ]
    assert silent == []
    assert all(found.help for found in commands(get_command(app)))


def test_every_command_can_answer_in_json() -> None:
    for found in commands(get_command(app)):
        assert "--json" in [name for each in found.params for name in each.opts], found.name


def test_help_needs_neither_the_client_nor_pictures_nor_live_displays() -> None:
    heavy = ("httpx2", "darkroom.types", "PIL", "rich.live", "http.server", "streamlit")
    program = f"import sys, darkroom.cli.app; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_its_libraries_the_program_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", {"rich": object()}.get)
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "typer is not installed" in said
    assert f"{sys.executable} -m pip install " in said
    assert "./client" not in said

"""What `darkroom generate` refuses before it asks a server."""

import pytest
from typer.testing import CliRunner

from darkroom.cli.app import app
from darkroom.cli.failures import ExitCode


@pytest.mark.parametrize(
    ("option", "value"),
    [("--upscaler", "lanczos"), ("--hires-strength", "0.4"), ("--hires-steps", "9")],
)
def test_options_of_a_second_pass_need_one(option: str, value: str) -> None:
    done = CliRunner().invoke(
        app, ["generate", "a lake", option, value], env={"DARKROOM_URL": "http://127.0.0.1:1"}
    )
    assert done.exit_code == ExitCode.USAGE
    assert f"{option} needs --hires, such as --hires 2." in done.stderr

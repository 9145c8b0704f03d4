"""Start the command line, or say what it needs."""

import signal
import sys
from importlib.util import find_spec
from types import FrameType

from darkroom.cli.exits import ExitCode

NEEDS = ("typer", "rich")


def run() -> None:
    """The program `darkroom`."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"The command line needs {' and '.join(missing)}. "
            "From a checkout of Darkroom: pip install './client[cli]'\n"
        )
        raise SystemExit(ExitCode.USAGE)
    # Being told to stop is like Ctrl-C: clean up, and say how to go on.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from darkroom.cli.app import app

        app(prog_name="darkroom")
    except KeyboardInterrupt:  # before a command has begun
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

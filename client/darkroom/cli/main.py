"""Start the command line, or say what it needs."""

import signal
import sys
from types import FrameType

from darkroom.cli.exits import ExitCode
from darkroom.extras import how_to_install


def run() -> None:
    """The program `darkroom`."""
    hint = how_to_install("cli", {"typer": "typer", "rich": "rich"})
    if hint is not None:
        sys.stderr.write(f"The command line cannot start: {hint}\n")
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

"""The program `darkroom`, also run as `python -m darkroom.cli`."""

import signal
import sys
from types import FrameType

from darkroom.cli.failures import ExitCode
from darkroom.extras import how_to_install


def run() -> None:
    """Start the command line, or say which packages it lacks."""
    hint = how_to_install("cli", {name: name for name in ("typer", "rich", "humanize")})
    if hint is not None:
        sys.stderr.write(f"The command line cannot start: {hint}\n")
        raise SystemExit(ExitCode.USAGE)
    # SIGTERM behaves like Ctrl-C: clean up, and say how to continue.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from darkroom.cli.app import app

        app(prog_name="darkroom")
    except KeyboardInterrupt:  # before a command has started
        raise SystemExit(ExitCode.INTERRUPTED) from None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()

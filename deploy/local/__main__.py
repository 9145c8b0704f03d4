"""`python -m deploy.local run | smoke`: the whole of Darkroom on this machine."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from deploy.local.errors import StackError, StopRequestedError
from deploy.local.ports import port_from_environment
from deploy.local.smoke import PROMPT, SEED, smoke
from deploy.local.stack import LocalStack
from deploy.local.terminal import Terminal

DEFAULT_PORT = 8000


def main() -> None:
    """Runs one command; the exit status is 0 when it did what was asked, else 1."""
    arguments = _parse()
    terminal = Terminal()
    stop = _stop_on_signals()
    try:
        if arguments.command == "smoke":
            smoke(terminal, stop)
        else:
            _run(arguments, terminal, stop)
    except StackError as error:
        terminal.fail(str(error))
        sys.exit(1)
    except OSError as error:  # the disk is full, a folder is closed to us
        terminal.fail(str(error))
        sys.exit(1)
    except StopRequestedError:
        # A stop before the end is what the user wanted of `run`, and a failure of `smoke`.
        sys.exit(1 if arguments.command == "smoke" else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local",
        description=__doc__,
        epilog="DARKROOM_HOME is the data folder (default .darkroom). DARKROOM_PORT, "
        "DARKROOM_PLAYGROUND_PORT, DARKROOM_POSTGRES_PORT, DARKROOM_REDIS_PORT and "
        "DARKROOM_S3_PORT choose ports.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="start everything and stay until Ctrl-C")
    run.add_argument(
        "--port", type=int, help=f"port of the API (default DARKROOM_PORT or {DEFAULT_PORT})"
    )
    commands.add_parser("smoke", help="make two pictures in a throw-away stack")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, terminal: Terminal, stop: threading.Event) -> None:
    home = Path(os.environ.get("DARKROOM_HOME") or ".darkroom")
    port = arguments.port or port_from_environment("DARKROOM_PORT") or DEFAULT_PORT
    stack = LocalStack(home, port=port, terminal=terminal, stop=stop)
    try:
        terminal.say(f"Darkroom starts in {stack.home.path}", "bold")
        stack.start()
        picture = stack.home.path / "first-image.png"
        with terminal.step("first image", picture):
            stack.generate({"prompt": PROMPT, "seed": SEED}, picture)
        _introduce(stack, terminal)
        stack.watch()
    except StackError:
        terminal.fact("logs", stack.home.logs)
        raise
    finally:
        terminal.say("Stopping …")
        with terminal.step("stopped"):
            stack.close()


def _introduce(stack: LocalStack, terminal: Terminal) -> None:
    terminal.say("Darkroom is ready", "bold green")
    if stack.playground is not None:
        terminal.fact("playground", stack.playground.url)
    else:
        terminal.fact("playground", "not installed; pip install './client[playground]' brings it")
    terminal.fact("API", stack.url)
    terminal.fact("docs", f"{stack.url}/docs")
    terminal.fact("key", stack.key)
    terminal.fact("settings", f". {stack.home.path / 'env'}")
    terminal.fact("logs", stack.home.logs)
    terminal.fact("stop", "Ctrl-C")


def _stop_on_signals() -> threading.Event:
    """An event that Ctrl-C, SIGTERM and the end of the terminal set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    main()

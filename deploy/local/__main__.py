"""`darkroom-server up | smoke`: the whole of Darkroom on this machine."""

import argparse
import os
import re
import signal
import sys
import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.local.host import StackError, StopRequestedError, port_from_environment

if TYPE_CHECKING:
    from deploy.local.stack import LocalStack, Terminal

DEFAULT_PORT = 8000
_OF_EXTRA = re.compile(
    r"(?P<package>[\w.-]+)(?P<rest>[^;]*);.*extra\s*==\s*[\"'](api|worker|local)[\"'].*"
)


def main() -> None:
    """Runs one command; the exit status is 0 when it did what was asked, else 1."""
    arguments = _parse()
    missing = _missing_packages()
    if missing:
        command = " ".join(f"'{requirement}'" for requirement in missing)
        sys.exit(f"Some packages are not installed: {sys.executable} -m pip install {command}")
    from deploy.local.smoke import smoke
    from deploy.local.stack import Terminal

    terminal = Terminal()
    stop = _stop_on_signals()
    try:
        if arguments.command == "smoke":
            smoke(terminal, stop)
        else:
            _run(arguments, terminal, stop)
    except (StackError, OSError) as error:  # such as a full disk or a closed folder
        terminal.fail(str(error))
        sys.exit(1)
    except StopRequestedError:
        # A stop before the end is what the user wanted of `run`, and a failure of `smoke`.
        sys.exit(1 if arguments.command == "smoke" else 0)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="darkroom-server",
        description=__doc__,
        epilog="DARKROOM_HOME is the data folder (default .darkroom). DARKROOM_PORT, "
        "DARKROOM_PLAYGROUND_PORT, DARKROOM_POSTGRES_PORT, DARKROOM_REDIS_PORT and "
        "DARKROOM_S3_PORT choose ports.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything and stay until Ctrl-C")
    up.add_argument(
        "--port", type=int, help=f"port of the API (default DARKROOM_PORT or {DEFAULT_PORT})"
    )
    commands.add_parser("smoke", help="make two images in a throw-away stack")
    return parser.parse_args()


def _missing_packages() -> list[str]:
    """The requirements of the extras `api`, `worker` and `local` that are not installed."""
    try:
        requirements = distribution("darkroom-server").requires or []
    except PackageNotFoundError:  # run from a source tree
        return []
    wanted = filter(None, map(_OF_EXTRA.fullmatch, requirements))
    return [
        each["package"] + each["rest"].strip()
        for each in wanted
        if not _is_installed(each["package"])
    ]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _run(arguments: argparse.Namespace, terminal: "Terminal", stop: threading.Event) -> None:
    from deploy.local.smoke import PROMPT, SEED
    from deploy.local.stack import LocalStack

    home = Path(os.environ.get("DARKROOM_HOME") or ".darkroom")
    port = arguments.port or port_from_environment("DARKROOM_PORT") or DEFAULT_PORT
    stack = LocalStack(home, port=port, terminal=terminal, stop=stop)
    try:
        terminal.say(f"Darkroom starts in {stack.home.path}", "bold")
        stack.start()
        image = stack.home.path / "first-image.png"
        with terminal.step("first image", image):
            stack.generate({"prompt": PROMPT, "seed": SEED}, image)
        _introduce(stack, terminal)
        stack.watch()
    except StackError:
        terminal.fact("logs", stack.home.logs)
        raise
    finally:
        terminal.say("Stopping …")
        with terminal.step("stopped"):
            stack.close()


def _introduce(stack: "LocalStack", terminal: "Terminal") -> None:
    terminal.say("Darkroom is ready", "bold green")
    if stack.playground is not None:
        terminal.fact("playground", stack.playground.url)
    else:
        hint = "not installed; it comes with the package darkroom and its extra playground"
        terminal.fact("playground", hint)
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

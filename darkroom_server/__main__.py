"""`darkroom-server COMMAND …`: every part of the server under one command."""

import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Command:
    """A module that is run as a program, and the arguments that always come first."""

    help: str
    module: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "up": Command(
        "start the whole system on this machine; Ctrl-C stops it", "deploy.local", ("up",)
    ),
    "smoke": Command("make two images in a throw-away system", "deploy.local", ("smoke",)),
    "api": Command(
        "serve the HTTP API; takes uvicorn's options",
        "uvicorn",
        (
            *("api.app:create_app", "--factory", "--http=api.core.connection:Connection"),
            "--timeout-keep-alive=75",  # longer than clients keep a connection: no race to close
            "--timeout-graceful-shutdown=10",
        ),
    ),
    "worker": Command("run a generate worker or a CPU worker", "worker"),
    "migrate": Command("bring the database to this version", "migrations", ("upgrade",)),
    "admin": Command("manage tenants and API keys", "deploy.admin"),
    "bootstrap": Command("make the bucket and register a first key", "deploy.bootstrap"),
    "backup": Command("save, restore or verify a backup", "deploy.backup"),
}


def main() -> None:
    """Run one command in this process; its exit status is the command's."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return
    command = COMMANDS.get(name)
    if command is None:
        print(f"darkroom-server: there is no command {name!r}\n\n{_usage()}", file=sys.stderr)
        sys.exit(2)
    # The folder of the packages: this one in a wheel, the one around it in a checkout.
    root = str(HERE if (HERE / "shared").is_dir() else HERE.parent)
    sys.path.insert(0, root)
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, inherited)))
    sys.argv = [f"darkroom-server {name}", *command.arguments, *rest]
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def _usage() -> str:
    lines = (f"  {name:<10} {command.help}" for name, command in COMMANDS.items())
    return "\n".join(
        ("usage: darkroom-server COMMAND …", "", *lines, "", "darkroom-server COMMAND --help: more")
    )


if __name__ == "__main__":
    main()

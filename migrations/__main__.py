"""`python -m migrations upgrade | new MESSAGE | check`: the schema of the configured database."""

import argparse
import sys

from migrations.commands import check, new, upgrade
from shared.core.settings import SettingsError


def main() -> None:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upgrade", help="apply every migration that is missing")
    commands.add_parser("check", help="fail if the tables in code differ from the database")
    add = commands.add_parser("new", help="write a migration from the difference")
    add.add_argument("message")
    arguments = parser.parse_args()
    try:
        if arguments.command == "upgrade":
            upgrade()
        elif arguments.command == "check":
            check()
        else:
            new(arguments.message)
    except SettingsError as error:
        sys.exit(str(error))


main()

"""Write the help pages of all commands as one page of Markdown.

    python -m darkroom.cli.reference docs/cli/reference.md

A test fails where the page is not what the commands say.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from darkroom.cli.app import app
from darkroom.cli.exits import ExitCode

_HEAD = """\
# The commands of `darkroom`

Made from the commands' own help by `python -m darkroom.cli.reference docs/cli/reference.md`; do
not edit. [The guide](../cli.md) shows them at work.

Every command takes `--url`, `--api-key`, `--json` and `--help`; they are described once, here:
"""
_SHARED = ("--url", "--api-key", "--json", "--help")


def write() -> str:
    """The whole page."""
    root: Any = get_command(app)
    context = root.make_context("darkroom", [], resilient_parsing=True)
    commands = list(_commands(root, context))
    shared = [each for each in commands[0][1].params if _names(each)[-1] in _SHARED]
    parts = [_HEAD, _options(shared, commands[0][2])]
    parts += ["## Commands\n", _contents(commands)]
    parts += [_page(name, found, inner) for name, found, inner in commands]
    parts += ["## Exit codes\n", _exit_codes()]
    return "\n".join(parts)


def _commands(group: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """(full name, command, its context) of every command, in the order of `--help`."""
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        inner = found.context_class(found, info_name=name, parent=context)
        if hasattr(found, "commands"):
            yield from _commands(found, inner)
        else:
            yield inner.command_path, found, inner


def _contents(commands: list[tuple[str, Any, Any]]) -> str:
    lines = ["| command | |", "|---|---|"]
    for name, found, _ in commands:
        anchor = name.replace(" ", "-")
        lines.append(f"| [`{name}`](#{anchor}) | {_cell(_first_sentence(found.help))} |")
    return "\n".join(lines) + "\n"


def _page(name: str, found: Any, context: Any) -> str:
    usage = " ".join(found.collect_usage_pieces(context))
    usage = usage.replace("{", "").replace("}", "")
    parts = [f"### {name}\n", f"    {name} {usage}\n", f"{_plain(found.help)}\n"]
    arguments = [each for each in found.params if each.param_type_name == "argument"]
    options = [
        each
        for each in found.params
        if each.param_type_name == "option" and _names(each)[-1] not in _SHARED
    ]
    if arguments or options:
        parts.append(_options([*arguments, *options], context))
    if found.epilog:
        examples = [line for line in _plain(found.epilog).splitlines() if line.strip()]
        parts.append("```console\n" + "\n".join(examples) + "\n```\n")
    return "\n".join(parts)


def _options(parameters: list[Any], context: Any) -> str:
    lines = ["| | |", "|---|---|"]
    for parameter in parameters:
        record = parameter.get_help_record(context)
        if record is not None:
            told = f"{_plain(record[1])} {_default(parameter)}"
            lines.append(f"| `{_cell(record[0])}` | {_cell(told)} |")
    return "\n".join(lines) + "\n"


def _default(parameter: Any) -> str:
    value = parameter.default
    if value in (None, False) or callable(value):
        return ""
    return f"Default: `{getattr(value, 'value', value)}`."


def _exit_codes() -> str:
    lines = ["| code | name | |", "|---|---|---|"]
    lines += [
        f"| {code.value} | `{code.name.lower()}` | {_cell(code.meaning)} |" for code in ExitCode
    ]
    return "\n".join(lines) + "\n"


def _names(parameter: Any) -> list[str]:
    return list(parameter.opts)


def _first_sentence(text: str) -> str:
    return " ".join(_plain(text).split("\n\n")[0].split())


def _plain(text: str) -> str:
    """Without rich's markup."""
    from rich.text import Text

    return Text.from_markup(text).plain


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(write(), "utf-8")

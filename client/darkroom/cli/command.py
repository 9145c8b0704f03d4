"""What every command shares: `--url`, `--api-key`, `--json`, a client, and one way to fail.

A command is a function whose first argument is a `Cli`. `command` puts the shared options behind
its own and hands it to Typer; whatever the function raises becomes one message and an exit code.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from darkroom.cli.exits import ExitCode
from darkroom.cli.output import Output

if TYPE_CHECKING:
    from darkroom import Client

Function = TypeVar("Function", bound=Callable[..., None])

SHARED = "Shared options"
"""The panel of a help page on which the options of all commands stand."""

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The server. Default: DARKROOM_URL, else .darkroom/env here or in a folder above.",
        rich_help_panel=SHARED,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Default: DARKROOM_API_KEY, else .darkroom/env. Other users of this machine can see "
        "a key that is given here.",
        rich_help_panel=SHARED,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="JSON on stdout, with the API's own names.", rich_help_panel=SHARED
    ),
]


class Cli:
    """One run of one command: its output, its client, and what to say if it is interrupted."""

    def __init__(self, output: Output, url: str | None = None, api_key: str | None = None) -> None:
        self.output = output
        self.url = url
        self.api_key = api_key
        self.options: frozenset[str] = frozenset()
        """What the running command takes, as it is written: `--n`, `PROMPT`."""
        self._resume: list[str] = []

    @cached_property
    def client(self) -> "Client":
        """Made on first use, so that what needs no server starts at once."""
        from darkroom import Client

        return Client(self.url, self.api_key)

    @property
    def client_url(self) -> str | None:
        """The server's address, if a client was made."""
        return self.client.url if "client" in self.__dict__ else None

    def if_interrupted(self, *lines: str) -> None:
        """What to say after Ctrl-C from now on, with rich's markup."""
        self._resume = list(lines)

    def say_how_to_resume(self) -> None:
        """Say it."""
        for line in self._resume:
            self.output.note(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if "client" in self.__dict__:
            self.client.close()


def command(
    app: typer.Typer, name: str, *, panel: str | None = None, examples: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Register a function as a command of that name; `examples` end its help page.

    `panel` is where it stands in the list of commands.
    """

    def register(function: Function) -> Function:
        epilog = "\n\n".join(f"[dim]$[/] {_escaped(example)}" for example in examples) or None
        app.command(name, epilog=epilog, rich_help_panel=panel)(_exposed(function))
        return function

    return register


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _exposed(function: Callable[..., None]) -> Callable[..., None]:
    """The function as Typer shall see it: without `cli`, with the shared options."""

    def run(
        *, shared_url: str | None, shared_key: str | None, shared_json: bool, **own: Any
    ) -> None:
        with Cli(Output(as_json=shared_json), shared_url, shared_key) as cli:
            cli.options = options
            _guarded(cli, lambda: function(cli, **own))

    options: frozenset[str] = frozenset()
    shared = [
        _keyword("shared_url", Url, None),
        _keyword("shared_key", ApiKey, None),
        _keyword("shared_json", Json, False),
    ]
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    run.__name__ = function.__name__
    run.__module__ = function.__module__
    run.__doc__ = _unwrapped(inspect.getdoc(function) or "")
    options = frozenset(name for each in own for name in _written(each))
    for parameter in [*parameters, *shared]:
        _name_value(parameter.annotation)
    run.__signature__ = inspect.Signature([*parameters, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*parameters, *shared]}
    return run


def _unwrapped(text: str) -> str:
    """Paragraphs of one line each: the terminal knows its own width."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _name_value(annotation: Any) -> None:
    """Say `N` for a number and nothing for a switch, where an option names no value of its own."""
    kind, *details = get_args(annotation) or (None,)
    for detail in details:
        if isinstance(detail, OptionInfo) and detail.metavar is None:
            kinds = set(get_args(kind)) or {kind}
            if bool in kinds:
                detail.metavar = ""
            elif kinds & {int, float}:
                detail.metavar = "N"


def _written(parameter: inspect.Parameter) -> list[str]:
    """How a parameter is written on the command line."""
    for detail in get_args(parameter.annotation)[1:]:
        if isinstance(detail, OptionInfo):
            # Typer takes the first name for a default where the option stands in `Annotated`.
            names = (detail.default, *(detail.param_decls or ()))
            declared = [each for each in names if isinstance(each, str) and each.startswith("--")]
            return declared or [f"--{parameter.name.replace('_', '-')}"]
        if isinstance(detail, ArgumentInfo):
            return [detail.metavar or parameter.name.upper()]
    return []


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _guarded(cli: Cli, run: Callable[[], None]) -> None:
    """Run; end with one message and an exit code where it fails."""
    try:
        run()
    except KeyboardInterrupt:
        cli.say_how_to_resume()
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        # Python would complain when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.PIPE) from None
    except Exception as error:
        from darkroom.cli.failures import explain

        failure = explain(error, cli.options, cli.client_url)
        if failure is None:
            raise
        failure.report(cli.output)
        raise typer.Exit(failure.exit_code) from error

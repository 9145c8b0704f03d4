"""What every command shares: `--url`, `--api-key`, `--json`, a client, and one way to fail.

A command is a function whose first argument is a `Cli`: Typer's context of that one run. `command`
registers it; whatever the function raises becomes one message and an exit code.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from typer.core import TyperCommand

from darkroom.cli.failures import ExitCode, explain
from darkroom.cli.output import Output

if TYPE_CHECKING:
    from darkroom import Client

Function = TypeVar("Function", bound=Callable[..., None])

GENERATE, FIND, OPERATE = "Generate images", "Find and keep images", "Look after the server"
"""Panels of `darkroom --help`."""
_SHARED = "Shared options"
"""The panel of a command's help that lists the options of all commands."""


class Cli(typer.Context):
    """One run of one command: its output, its client, and what to say if it is interrupted."""

    url: str | None = None
    api_key: str | None = None
    output: Output
    _resume: tuple[str, ...] = ()

    @cached_property
    def client(self) -> "Client":
        """Created on first use, so that commands that need no server start at once."""
        from darkroom import Client

        client = Client(self.url, self.api_key)
        self.call_on_close(client.close)
        return client

    @property
    def options(self) -> frozenset[str]:
        """The command's parameters as the user types them: `--n`, `PROMPT`."""
        names = set()
        for each in self.command.params:
            names |= {opt for opt in each.opts if opt.startswith("--")} or {each.metavar or ""}
        return frozenset(names)

    def if_interrupted(self, *lines: str) -> None:
        """Set what to say after Ctrl-C from now on, in rich's markup."""
        self._resume = lines

    @contextmanager
    def failing_plainly(self) -> Iterator[None]:
        """Turn every exception into one message and an exit code."""
        try:
            yield
        except KeyboardInterrupt:
            for line in self._resume:
                self.output.note(line)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # Python would complain when it flushes stdout on exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.PIPE) from None
        except Exception as error:
            url = self.client.url if "client" in self.__dict__ else None
            failure = explain(error, self.options, url)
            if failure is None:
                raise
            failure.report(self.output)
            raise typer.Exit(failure.exit_code) from error


class Command(TyperCommand):
    """A command with the shared options, whose context is a `Cli`."""

    context_class = Cli

    def __init__(self, *args: Any, params: list[Any], help: str | None, **options: Any) -> None:  # noqa: A002
        super().__init__(*args, params=[*params, *_shared_options()], help=_unwrap(help), **options)
        for each in params:
            if each.metavar is None and each.param_type_name == "option":
                each.metavar = _metavar(each)

    def invoke(self, ctx: Any) -> Any:
        """Run the function with its own options; the shared ones configure the context."""
        cli = cast(Cli, ctx)
        cli.url, cli.api_key = (cli.params.pop(name) for name in ("shared_url", "shared_key"))
        cli.output = Output(as_json=cli.params.pop("shared_json"))
        with cli.failing_plainly():
            return super().invoke(cli)


def command(
    app: typer.Typer, name: str, *, panel: str | None = None, examples: Sequence[str] = ()
) -> Callable[[Function], Function]:
    """Register a function as a command; `examples` end its help page.

    `panel` is its section in the list of commands.
    """
    epilog = "\n\n".join(f"$ {example}" for example in examples) or None
    return app.command(name, cls=Command, epilog=epilog, rich_help_panel=panel)


def _unwrap(text: str | None) -> str:
    """Make each paragraph one line: the terminal knows its own width."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _metavar(option: Any) -> str | None:
    """`N` for a number and nothing for a switch, instead of Typer's names of types."""
    if option.is_flag:
        return ""
    return "N" if option.type_descriptor.annotation in (int, float) else None


def _shared_options() -> list[Any]:
    # Typer builds options from a function's signature; there is no other public way.
    app = typer.Typer(add_completion=False)
    app.command()(_take_shared_options)
    return typer.main.get_command(app).params


def _take_shared_options(
    shared_url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="The server; `darkroom config` shows the default and where it comes from.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    shared_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help="Others on this machine can see it; `darkroom login` saves it instead.",
            rich_help_panel=_SHARED,
        ),
    ] = None,
    shared_json: Annotated[
        bool,
        typer.Option(
            "--json",
            metavar="",
            help="Print JSON with the API's own field names.",
            rich_help_panel=_SHARED,
        ),
    ] = False,
) -> None:
    pass

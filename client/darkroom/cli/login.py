"""`darkroom login`, `logout` and `config`: which server and key, and where they come from."""

import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from darkroom.cli.command import OPERATE, Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.configuration import (
    LOOPBACK,
    SavedKeys,
    checked_key,
    find_configuration,
    find_url,
    masked,
)
from darkroom.errors import ConfigurationError

app = typer.Typer()

_TIMEOUT = 15.0
"""Seconds to wait for the server when a key is tried."""
_SOURCES = {"argument": "an option"}


@command(
    app,
    "login",
    panel=OPERATE,
    examples=["darkroom login https://darkroom.example.com", "pass darkroom | darkroom login"],
)
def login(
    cli: Cli,
    server: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="The server; default: the one in use.")
    ] = None,
) -> None:
    """Save an API key for a server, so that commands and programs find it.

    The key is read from the terminal or from stdin, tried, and saved in a file that only you can
    read. Later commands use this server; --url chooses another with a saved key.
    """
    from darkroom import Client

    url, _ = find_url(server or cli.url or _ask_for_url())
    key = checked_key(cli.api_key or _ask_for_key(url))
    with Client(url, key, timeout=_TIMEOUT, retries=1) as client:
        usage = client.usage()
    saved = SavedKeys.read().with_key(url, key)
    cli.output.outcome(
        {"url": url, "key_id": usage.key_id, "file": saved.path},
        f"The key [bold]{usage.key_id}[/] of {url} is saved in {saved.path}.",
        *_cautions(url, key),
    )


def _cautions(url: str, key: str) -> list[str]:
    """What to know about a login that worked."""
    from rich.markup import escape

    cautions = []
    parts = urlsplit(url)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        cautions.append("[yellow]Note:[/] over http:// others on the way can read the key.")
    try:
        found = find_configuration()
    except ConfigurationError as error:
        return [*cautions, f"[yellow]Note:[/] {escape(str(error))}"]
    if (found.url, found.api_key) != (url, key):
        place = found.url_source if found.url != url else found.key_source
        cautions.append(f"[yellow]Note:[/] here, {_named(place)} goes before it.")
    return cautions


def _ask_for_url() -> str | None:
    try:
        known = find_url()[0]
    except ConfigurationError:
        known = None
    if not sys.stdin.isatty():
        return known
    answer: str = typer.prompt("Server", default=known, err=True)
    return answer


def _ask_for_key(url: str) -> str:
    if sys.stdin.isatty():
        answer: str = typer.prompt(f"API key for {url}", hide_input=True, err=True)
        return answer.strip()
    answer = sys.stdin.readline().strip()
    if not answer:
        raise CliError("There is no key on stdin.", ExitCode.USAGE, "Pipe the API key in.")
    return answer


@command(app, "logout", panel=OPERATE)
def logout(
    cli: Cli,
    server: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="The server; default: that of the latest login."),
    ] = None,
) -> None:
    """Forget the saved API key of a server. The key itself stays valid."""
    saved = SavedKeys.read()
    url = (server or cli.url or saved.default or "").rstrip("/")
    if url not in saved.keys:
        known = ", ".join(saved.keys) or "there are none"
        raise CliError(
            f"No key is saved for {url or 'any server'}.", ExitCode.NOT_FOUND, f"Saved: {known}."
        )
    saved.without(url)
    cli.output.outcome({"url": url}, f"The key of {url} is forgotten.")


@command(app, "config", panel=OPERATE)
def config(cli: Cli) -> None:
    """Show which server and key are used, where they come from, and what is saved."""
    found = find_configuration(cli.url, cli.api_key)
    saved = SavedKeys.read()
    others = [url for url in saved.keys if url != found.url]
    cli.output.facts(
        [
            ("server", found.url),
            ("server from", _named(found.url_source)),
            ("key", masked(found.api_key)),
            ("key from", _named(found.key_source)),
            ("saved for", ", ".join(others) or None),
            ("file", saved.path if saved.keys else None),
        ],
        {
            "url": found.url,
            "url_source": found.url_source,
            "key": masked(found.api_key),
            "key_source": found.key_source,
            "saved": list(saved.keys),
            "file": saved.path,
        },
    )


def _named(source: str) -> str:
    return _SOURCES.get(source, source)

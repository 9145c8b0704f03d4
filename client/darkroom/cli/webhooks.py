"""`darkroom webhooks`: receivers, what was sent to them, and one to try things with."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.options import Limit, given, moment
from darkroom.cli.output import Column
from darkroom.cli.words import ago, short, state_markup

if TYPE_CHECKING:
    from darkroom.cli.receiver import Received, Receiver
    from darkroom.types.webhooks import Delivery, Endpoint

app = typer.Typer(no_args_is_help=True, help="Be told when something happens; see what was told.")

EventNames = Annotated[
    list[str] | None,
    typer.Option(
        "--event", "-e", help="Which events, e.g. job.succeeded. Default: ends of jobs, batches."
    ),
]


@command(
    app,
    "listen",
    examples=["darkroom webhooks listen", "darkroom webhooks listen -e job.succeeded"],
)
def listen(
    cli: Cli,
    event: EventNames = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 0,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where the server reaches this port, e.g. a tunnel's address."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="End after so many events.")
    ] = None,
) -> None:
    """Receive events on this machine: registers itself, checks signatures, prints.

    It listens on 127.0.0.1, and takes its registration back when it ends. Events go to stdout, a
    line each (`--json`: the whole event). A server on another machine, or one that allows only
    https, needs `--public-url`.
    """
    with _open(port) as receiver:
        url = public_url or receiver.url
        endpoint = cli.client.webhooks.endpoints.create(
            url, **given(events=event, description="darkroom webhooks listen")
        )
        try:
            receiver.trust(_verifier(endpoint.secret or ""))
            cli.output.note(f"Listening on [bold]{url}[/] as {endpoint.id}. Ctrl-C ends it.")
            _print_events(cli, receiver, count)
        finally:
            cli.client.webhooks.endpoints.delete(endpoint)
            cli.output.note(f"[dim]{endpoint.id} is removed.[/]")


def _open(port: int) -> "Receiver":
    from darkroom.cli.receiver import Receiver

    try:
        return Receiver(port)
    except OSError as error:
        raise CliError(
            f"Port {port} cannot be used: {error.strerror}.", ExitCode.USAGE, "Take another --port."
        ) from None


def _verifier(secret: str) -> Any:
    from darkroom.errors import InvalidSignature
    from darkroom.webhooks import verify

    def check(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        try:
            return dict(verify(body, headers, secret).raw)
        except InvalidSignature as error:
            raise ValueError(str(error)) from None

    return check


def _print_events(cli: Cli, receiver: "Receiver", count: int | None) -> None:
    shown = 0
    while count is None or shown < count:
        received = receiver.arrivals.get()
        if received.event is None:
            cli.output.note(f"[red]Refused[/] a request: {received.problem}")
        elif received.is_repeat:
            cli.output.note(f"[dim]{received.event['id']} came again; dropped.[/]")
        else:
            _print_event(cli, received)
            shown += 1


def _print_event(cli: Cli, received: "Received") -> None:
    event: Mapping[str, Any] = received.event or {}
    if cli.output.as_json:
        cli.output.line(event)
        return
    data = event.get("data") or {}
    words = [str(event.get("timestamp", "")), str(event.get("type", "")), str(data.get("id", ""))]
    if data.get("seeds"):
        words.append("seeds " + ",".join(str(seed) for seed in data["seeds"]))
    if data.get("error"):
        words.append(short(f"{data['error'].get('code')}: {data['error'].get('message')}"))
    cli.output.text("\t".join(words))


@command(app, "endpoints")
def endpoints(cli: Cli, limit: Limit = 50) -> None:
    """Receivers that are registered, and whether they work."""
    columns: list[Column[Endpoint]] = [
        Column("id", lambda each: each.id),
        Column("url", lambda each: each.url, wrap=True),
        Column("state", _endpoint_state, lambda each: _coloured(_endpoint_state(each))),
        Column("events", lambda each: " ".join(each.events), wrap=True),
        Column("what for", lambda each: each.description),
    ]
    found = cli.client.webhooks.endpoints.list().take(limit)
    cli.output.rows(found, columns, nothing="No receiver is registered.")


def _endpoint_state(endpoint: "Endpoint") -> str:
    if not endpoint.enabled:
        return f"off ({endpoint.disabled_reason})" if endpoint.disabled_reason else "off"
    return (
        f"failing since {endpoint.failing_since:%Y-%m-%d %H:%M}" if endpoint.failing_since else "on"
    )


def _coloured(state: str) -> str:
    colour = "green" if state == "on" else "red" if state.startswith("failing") else "yellow"
    return f"[{colour}]{state}[/]"


@command(app, "add", examples=["darkroom webhooks add https://example.com/hooks -e job.succeeded"])
def add(
    cli: Cli,
    url: Annotated[str, typer.Argument(metavar="URL", help="https, port 443 or 80.")],
    event: EventNames = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
) -> None:
    """Register a receiver. Its secret is shown this once: stdout gets it, stderr the rest."""
    made = cli.client.webhooks.endpoints.create(url, **given(events=event, description=description))
    if cli.output.as_json:
        cli.output.document(made)
        return
    cli.output.text(made.secret or "")
    cli.output.note(f"[dim]{made.id}. The secret is not shown again.[/]")


@command(app, "remove")
def remove(
    cli: Cli, endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="whe_…")]
) -> None:
    """Remove a receiver, with the log of what was sent to it."""
    cli.client.webhooks.endpoints.delete(endpoint)
    if cli.output.as_json:
        cli.output.document({"id": endpoint, "removed": True})
    else:
        cli.output.note(f"{endpoint} is removed.")


@command(app, "deliveries", examples=["darkroom webhooks deliveries --state failed"])
def deliveries(
    cli: Cli,
    *,
    endpoint: Annotated[str | None, typer.Option(help="To this receiver.")] = None,
    job: Annotated[str | None, typer.Option(help="About this job.")] = None,
    batch: Annotated[str | None, typer.Option(help="About this batch.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="pending, succeeded or failed. May be repeated.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """The log of what was sent, newest first."""
    columns: list[Column[Delivery]] = [
        Column("id", lambda each: each.id),
        Column("event", lambda each: each.event),
        Column("state", lambda each: each.state, lambda each: state_markup(each.state)),
        Column("about", lambda each: each.job_id or each.batch_id),
        Column("tries", lambda each: len(each.attempts), right=True),
        Column("answer", _answer, wrap=True),
        Column("made", lambda each: each.created_at, lambda each: ago(each.created_at)),
    ]
    found = cli.client.webhooks.deliveries.list(
        endpoint=endpoint, job=job, batch=batch, state=state
    ).take(limit)
    cli.output.rows(found, columns, nothing="Nothing was sent.")


def _answer(delivery: "Delivery") -> str | None:
    if not delivery.attempts:
        return None
    latest = delivery.attempts[-1]
    return latest.error.code if latest.error else f"HTTP {latest.status}"


@command(
    app,
    "redeliver",
    examples=["darkroom webhooks redeliver whd_…", "darkroom webhooks redeliver whe_… --since 6h"],
)
def redeliver(
    cli: Cli,
    what: Annotated[str, typer.Argument(metavar="DELIVERY|ENDPOINT", help="whd_… or whe_…")],
    since: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", parser=moment, help="Of an endpoint: from then on. 6h, 7d, …"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Of an endpoint: also what had arrived.")
    ] = False,
) -> None:
    """Send again: one delivery, or all that an endpoint has missed since a time."""
    if since is None:
        delivery = cli.client.webhooks.deliveries.redeliver(what)
        cli.output.facts([("delivery", delivery.id), ("state", delivery.state)], delivery)
        return
    count = cli.client.webhooks.endpoints.redeliver(
        what, since=since, state="all" if every else "failed"
    )
    cli.output.facts([("deliveries", count.deliveries)], count)

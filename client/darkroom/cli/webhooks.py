"""`darkroom webhooks`: endpoints, their deliveries, and a local receiver to test with."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.options import Limit, given, moment
from darkroom.cli.output import Column, age, short, state_markup
from darkroom.errors import InvalidWebhookSignatureError

if TYPE_CHECKING:
    from darkroom.cli.receiver import Arrival, Receiver
    from darkroom.types.webhooks import Delivery, Endpoint

app = typer.Typer(no_args_is_help=True, help="Get notified of events, and see what was sent.")

EventNames = Annotated[
    list[str] | None,
    typer.Option(
        "--event",
        "-e",
        help="An event such as job.succeeded. Repeatable. Default: jobs and batches end.",
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 0,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address at which the server reaches this port, e.g. a tunnel's."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="Stop after this many events.")
    ] = None,
) -> None:
    """Receive events on this machine: register an endpoint, verify signatures, print.

    It listens on 127.0.0.1 and removes the endpoint when it stops. Stdout gets a line per event
    (with `--json`, the whole event). A server on another machine, or one that allows only https,
    needs `--public-url`.
    """
    with _open(port) as receiver:
        url = public_url or receiver.url
        endpoint = cli.client.webhooks.endpoints.create(
            url, **given(events=event, description="darkroom webhooks listen")
        )
        try:
            receiver.trust(_verifier(endpoint.secret or ""))
            cli.output.note(f"Listening on [bold]{url}[/] as {endpoint.id}. Press Ctrl-C to stop.")
            _print_events(cli, receiver, count)
        finally:
            cli.client.webhooks.endpoints.delete(endpoint)
            cli.output.note(f"[dim]Removed {endpoint.id}.[/]")


def _open(port: int) -> "Receiver":
    from darkroom.cli.receiver import Receiver

    try:
        return Receiver(port)
    except OSError as error:
        raise CliError(
            f"Cannot use port {port}: {error.strerror}.", ExitCode.USAGE, "Choose another --port."
        ) from None


def _verifier(secret: str) -> Any:
    from darkroom.webhooks import verify

    def check(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        try:
            return dict(verify(body, headers, secret).raw)
        except InvalidWebhookSignatureError as error:
            raise ValueError(str(error)) from None

    return check


def _print_events(cli: Cli, receiver: "Receiver", count: int | None) -> None:
    shown = 0
    while count is None or shown < count:
        received = receiver.arrivals.get()
        if received.event is None:
            cli.output.note(f"[red]Refused[/] a request: {received.problem}")
        elif received.is_repeat:
            cli.output.note(f"[dim]{received.event['id']} was delivered again; dropped.[/]")
        else:
            _print_event(cli, received)
            shown += 1


def _print_event(cli: Cli, received: "Arrival") -> None:
    event: Mapping[str, Any] = received.event or {}
    if cli.output.as_json:
        cli.output.line(event)
        return
    data = event.get("data") or {}
    parts = [str(event.get("timestamp", "")), str(event.get("type", "")), str(data.get("id", ""))]
    if data.get("seeds"):
        parts.append("seeds " + ",".join(str(seed) for seed in data["seeds"]))
    if data.get("error"):
        parts.append(short(f"{data['error'].get('code')}: {data['error'].get('message')}"))
    cli.output.text("\t".join(parts))


@command(app, "endpoints")
def endpoints(cli: Cli, limit: Limit = 50) -> None:
    """List the registered endpoints, and whether they work."""
    columns: list[Column[Endpoint]] = [
        Column("id", lambda each: each.id),
        Column("url", lambda each: each.url, wrap=True),
        Column("state", _endpoint_state, lambda each: _coloured(_endpoint_state(each))),
        Column("events", lambda each: " ".join(each.events), wrap=True),
        Column("description", lambda each: each.description, drop=1),
    ]
    result = cli.client.webhooks.endpoints.list().take(limit)
    cli.output.rows(result, columns, empty="No endpoint is registered.")


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
    description: Annotated[str | None, typer.Option(help="Purpose.")] = None,
) -> None:
    """Register an endpoint and print its secret; it is never shown again. Stderr gets its id."""
    endpoint = cli.client.webhooks.endpoints.create(
        url, **given(events=event, description=description)
    )
    note = f"[dim]{endpoint.id}. The secret is not shown again.[/]"
    cli.output.outcome(endpoint, note, text=endpoint.secret or "")


@command(app, "remove")
def remove(
    cli: Cli, endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="whe_…")]
) -> None:
    """Remove an endpoint and its delivery log."""
    cli.client.webhooks.endpoints.delete(endpoint)
    cli.output.outcome({"id": endpoint, "removed": True}, f"Removed {endpoint}.")


@command(app, "deliveries", examples=["darkroom webhooks deliveries --state failed"])
def deliveries(
    cli: Cli,
    *,
    endpoint: Annotated[str | None, typer.Option(help="Sent to this endpoint.")] = None,
    job: Annotated[str | None, typer.Option(help="About this job.")] = None,
    batch: Annotated[str | None, typer.Option(help="About this batch.")] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="pending, succeeded or failed. Repeatable.")
    ] = None,
    limit: Limit = 20,
) -> None:
    """List deliveries, newest first."""
    columns: list[Column[Delivery]] = [
        Column("id", lambda each: each.id),
        Column("event", lambda each: each.event),
        Column("state", lambda each: each.state, lambda each: state_markup(each.state)),
        Column("about", lambda each: each.job_id or each.batch_id, drop=2),
        Column("attempts", lambda each: len(each.attempts), right=True, drop=1),
        Column("answer", _answer, wrap=True),
        Column("age", lambda each: each.created_at, lambda each: age(each.created_at)),
    ]
    result = cli.client.webhooks.deliveries.list(
        endpoint=endpoint, job=job, batch=batch, state=state
    ).take(limit)
    cli.output.rows(result, columns, empty="Nothing was sent.")


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
        typer.Option(
            metavar="TIME",
            parser=moment,
            help="With an endpoint: send again what it missed since then: 6h, 7d, …",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="With an endpoint: also what was delivered.")
    ] = False,
) -> None:
    """Redeliver one delivery, or everything that an endpoint has missed since a time."""
    if since is None:
        delivery = cli.client.webhooks.deliveries.redeliver(what)
        cli.output.facts([("delivery", delivery.id), ("state", delivery.state)], delivery)
        return
    count = cli.client.webhooks.endpoints.redeliver(
        what, since=since, state="all" if every else "failed"
    )
    cli.output.facts([("deliveries", count.deliveries)], count)

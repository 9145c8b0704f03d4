"""`darkroom models`, `usage`, `keys` and `workers`: what operators and key holders look after."""

from datetime import datetime
from typing import Annotated, Any

import typer

from darkroom.cli.command import OPERATE, Cli, command
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.options import Limit, complete_worker, given
from darkroom.cli.output import Column, age, ago, duration, state_markup
from darkroom.types import Allowance, Key, Model, Worker

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, help="Your tenant's API keys. Needs the scope admin.")
workers = typer.Typer(no_args_is_help=True, help="All tenants' workers. Needs the scope operator.")

WorkerName = Annotated[
    str, typer.Argument(metavar="WORKER", help="Its name.", autocompletion=complete_worker)
]

_QUOTAS = ("requests_per_minute", "concurrent_jobs", "queued_cost", "max_pixels")


@command(app, "models", panel=OPERATE)
def list_models(cli: Cli) -> None:
    """List the models: sizes, steps, schedulers, and the workers that serve them."""
    cli.output.rows(
        cli.client.models.list(),
        [
            Column("model", lambda model: model.name + (" (default)" if model.default else "")),
            Column(
                "served", _served, lambda m: f"[green]{_served(m)}[/]" if m.served else _served(m)
            ),
            Column("size", lambda model: f"{model.default_width}×{model.default_height}"),
            Column("largest", lambda model: f"{model.max_width}×{model.max_height}", drop=2),
            Column("steps", lambda model: model.default_steps, right=True),
            Column(
                "guidance",
                lambda model: f"{model.default_guidance_scale:g}",
                right=True,
                drop=3,
            ),
            Column("default", lambda model: model.default_scheduler, drop=1),
            Column("schedulers", lambda model: ", ".join(model.schedulers), wrap=True),
        ],
        empty="The server's catalogue has no models.",
    )


@command(app, "loras", panel=OPERATE)
def list_loras(cli: Cli) -> None:
    """List the LoRAs: for which models, with which trigger words."""
    cli.output.rows(
        cli.client.loras.list(),
        [
            Column("lora", lambda lora: lora.name),
            Column("family", lambda lora: lora.family),
            Column("models", lambda lora: ", ".join(lora.models), wrap=True),
            Column("trigger words", lambda lora: ", ".join(lora.trigger_words), wrap=True),
        ],
        empty="The server's catalogue has no LoRAs.",
    )


def _served(model: Model) -> str:
    if model.served is None:
        return "unknown"
    if not model.served:
        return "by no worker"
    devices = sorted({worker.device or "?" for worker in model.workers or ()})
    return f"by {len(model.workers or ())} on {', '.join(devices)}"


@command(app, "usage", panel=OPERATE)
def show_usage(cli: Cli) -> None:
    """Show what this key has used, and what it has left."""
    usage = cli.client.usage()
    cli.output.facts(
        [
            ("key", usage.key_id),
            ("requests per minute", _allowance(usage.requests_per_minute)),
            ("concurrent jobs", _allowance(usage.concurrent_jobs)),
            ("queued pixel-steps", _allowance(usage.queued_cost)),
            ("GPU-seconds today", _allowance(usage.gpu_seconds_per_day)),
            ("upload bytes", _allowance(usage.upload_bytes)),
            ("largest image", f"{usage.max_pixels:,} pixels" if usage.max_pixels else "no limit"),
            ("models", ", ".join(usage.models) if usage.models is not None else "all"),
        ],
        usage,
    )


def _allowance(allowance: Allowance) -> str:
    used = "unknown" if allowance.used is None else f"{allowance.used:,.6g}"
    if allowance.limit is None:
        return "no limit" if allowance.used is None else f"{used} used, no limit"
    text = f"{used} of {allowance.limit:,g} used"
    if allowance.reserved:
        text += f", {allowance.reserved:,.6g} reserved for unfinished jobs"
    if allowance.resets_at is not None:
        text += f", resets {ago(allowance.resets_at)}"
    return text


@command(keys, "list")
def list_keys(cli: Cli, limit: Limit = 50) -> None:
    """List your tenant's keys, newest first, without their secrets."""
    cli.output.rows(
        cli.client.keys.list().take(limit),
        [
            Column("id", lambda key: key.id),
            Column("name", lambda key: key.name),
            Column("scopes", lambda key: " ".join(key.scopes), wrap=True),
            Column("state", _key_state),
            Column("last used", lambda key: key.last_used_at, lambda key: age(key.last_used_at)),
        ],
        empty="There are no keys.",
    )


def _key_state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None:
        is_over = key.expires_at < datetime.now(key.expires_at.tzinfo)
        return "expired" if is_over else f"until {key.expires_at:%Y-%m-%d %H:%M}"
    return "valid"


@command(
    keys,
    "create",
    examples=[
        "darkroom keys create backend --scope jobs --scope images:read --quota concurrent_jobs=4"
    ],
)
def create_key(
    cli: Cli,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Purpose; shown in lists.")],
    scope: Annotated[
        list[str],
        typer.Option(
            help="jobs, images, search, batches, webhooks, admin; `jobs:read`, … Repeatable."
        ),
    ],
    expires: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="When it stops working, in local time.")
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="requests_per_minute, concurrent_jobs, queued_cost, gpu_seconds_per_day or "
            "max_pixels. Repeatable.",
        ),
    ] = None,
) -> None:
    """Create a key and print it; it is never shown again. Stderr gets its id."""
    key = cli.client.keys.create(
        name,
        scopes=scope,
        **given(
            expires_at=expires.astimezone() if expires else None,
            quotas=_quotas(quota) if quota else None,
        ),
    )
    note = f"[dim]{key.id}, for tenant {key.tenant}. It is not shown again.[/]"
    cli.output.outcome(key, note, text=key.key)


def _quotas(texts: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            result[name] = int(value) if name in _QUOTAS else float(value)
        except ValueError:
            raise CliError(f"{text!r} is not NAME=number.", ExitCode.USAGE) from None
    return result


@command(keys, "revoke")
def revoke_key(
    cli: Cli,
    key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, its public part.")],
) -> None:
    """Revoke a key permanently; it stops working everywhere within five seconds."""
    cli.client.keys.revoke(key)
    cli.output.outcome({"id": key, "revoked": True}, f"{key} is revoked.")


@command(workers, "list")
def list_workers(cli: Cli) -> None:
    """List live workers, and absent ones that are to drain when they return."""
    columns: list[Column[Worker]] = [
        Column("worker", lambda worker: worker.name),
        Column("kind", lambda worker: worker.kind),
        Column("state", lambda worker: worker.state, lambda worker: state_markup(worker.state)),
        Column("device", lambda worker: worker.device),
        Column("models", _model_names, wrap=True),
        Column("jobs", lambda worker: worker.jobs, right=True),
        Column("last seen", _last_seen, drop=1),
        Column("up", lambda w: w.started_at, lambda w: age(w.started_at), drop=2),
    ]
    cli.output.rows(cli.client.workers.list(), columns, empty="No worker is alive.")


def _model_names(worker: Worker) -> str:
    return ", ".join(
        each.name if each.state == "warm" else f"{each.name} ({each.state})"
        for each in worker.models
    )


def _last_seen(worker: Worker) -> str | None:
    return None if worker.lag is None else f"{duration(worker.lag)} ago"


@command(workers, "show")
def show_worker(cli: Cli, worker: WorkerName) -> None:
    """Show a worker."""
    _print_worker(cli, cli.client.workers.get(worker))


def _print_worker(cli: Cli, worker: Worker) -> None:
    from humanize import naturalsize

    drain = worker.drain
    cli.output.facts(
        [
            ("worker", worker.name),
            ("kind", worker.kind),
            ("state", worker.state),
            ("device", worker.device),
            ("models", _model_names(worker) or None),
            ("jobs in flight", worker.jobs),
            ("threads", worker.threads),
            ("model memory", naturalsize(worker.memory.used) if worker.memory.used else None),
            ("dispatcher leader", "yes" if worker.dispatches else None),
            ("last seen", _last_seen(worker)),
            ("version", worker.version),
            ("started", worker.started_at),
            ("drain requested", drain.requested_at if drain else None),
            ("safe to stop", f"since {drain.drained_at}" if drain and drain.drained_at else None),
        ],
        worker,
    )


@command(workers, "drain")
def drain_worker(cli: Cli, worker: WorkerName) -> None:
    """Let a worker finish its jobs and take no more; `show` says when it is done."""
    _print_worker(cli, cli.client.workers.drain(worker))


@command(workers, "resume")
def resume_worker(cli: Cli, worker: WorkerName) -> None:
    """Let a drained worker take work again."""
    _print_worker(cli, cli.client.workers.resume(worker))

"""`darkroom models`, `usage` and `keys`: what the server offers, and what this key may do."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from darkroom.cli.command import Cli, command
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.options import Limit, given
from darkroom.cli.output import Column
from darkroom.cli.words import ago

if TYPE_CHECKING:
    from darkroom.types.account import Allowance, Key
    from darkroom.types.service import Model

keys = typer.Typer(no_args_is_help=True, help="API keys of your tenant. Needs the scope admin.")

_QUOTAS = ("requests_per_minute", "concurrent_jobs", "queued_cost", "max_pixels")


def list_models(cli: Cli) -> None:
    """Models that can be asked for: sizes, steps, schedulers, and who serves them."""
    cli.output.rows(
        cli.client.models.list(),
        [
            Column("model", lambda model: model.name + (" (default)" if model.default else "")),
            Column(
                "served", _served, lambda m: f"[green]{_served(m)}[/]" if m.served else _served(m)
            ),
            Column("size", lambda model: f"{model.default_width}×{model.default_height}"),
            Column("largest", lambda model: f"{model.max_width}×{model.max_height}"),
            Column("steps", lambda model: model.default_steps, right=True),
            Column("guidance", lambda model: f"{model.default_guidance_scale:g}", right=True),
            Column("default", lambda model: model.default_scheduler),
            Column("schedulers", lambda model: ", ".join(model.schedulers), wrap=True),
        ],
        nothing="The server's catalogue has no models.",
    )


def _served(model: "Model") -> str:
    if model.served is None:
        return "unknown"
    if not model.served:
        return "by nobody"
    devices = sorted({worker.device or "?" for worker in model.workers or ()})
    return f"by {len(model.workers or ())} on {', '.join(devices)}"


def show_usage(cli: Cli) -> None:
    """What this key has used, and what it has left."""
    usage = cli.client.usage()
    cli.output.facts(
        [
            ("key", usage.key_id),
            ("requests a minute", _allowance(usage.requests_per_minute)),
            ("jobs at once", _allowance(usage.concurrent_jobs)),
            ("queued pixel-steps", _allowance(usage.queued_cost)),
            ("GPU-seconds today", _allowance(usage.gpu_seconds_per_day)),
            ("bytes of uploads", _allowance(usage.upload_bytes)),
            ("largest picture", f"{usage.max_pixels:,} pixels" if usage.max_pixels else "no limit"),
            ("models", ", ".join(usage.models) if usage.models is not None else "all"),
        ],
        usage,
    )


def _allowance(allowance: "Allowance") -> str:
    used = "unknown" if allowance.used is None else f"{allowance.used:,.6g}"
    if allowance.limit is None:
        return "no limit" if allowance.used is None else f"{used} used, no limit"
    text = f"{used} of {allowance.limit:,g} used"
    if allowance.reserved:
        text += f", {allowance.reserved:,.6g} held back for unfinished jobs"
    if allowance.resets_at is not None:
        text += f", begins anew {ago(allowance.resets_at)}"
    return text


@command(keys, "list")
def list_keys(cli: Cli, limit: Limit = 50) -> None:
    """Keys of your tenant, newest first, without their secrets."""
    cli.output.rows(
        cli.client.keys.list().take(limit),
        [
            Column("id", lambda key: key.id),
            Column("name", lambda key: key.name),
            Column("scopes", lambda key: " ".join(key.scopes), wrap=True),
            Column("state", _state),
            Column("last used", lambda key: key.last_used_at, lambda key: ago(key.last_used_at)),
        ],
        nothing="There are no keys.",
    )


def _state(key: "Key") -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None:
        has_ended = key.expires_at < datetime.now(key.expires_at.tzinfo)
        return "expired" if has_ended else f"until {key.expires_at:%Y-%m-%d %H:%M}"
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for; shown in lists.")],
    scope: Annotated[
        list[str], typer.Option(help="jobs, images, search, batches, webhooks, admin; `:read`.")
    ],
    expires: Annotated[
        datetime | None, typer.Option(metavar="TIME", help="When it stops working; local time.")
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="requests_per_minute, concurrent_jobs, queued_cost, gpu_seconds_per_day or "
            "max_pixels. May be repeated.",
        ),
    ] = None,
) -> None:
    """Make a key. It is shown this once: stdout gets the key, stderr the rest."""
    made = cli.client.keys.create(
        name,
        scopes=scope,
        **given(
            expires_at=expires.astimezone() if expires else None,
            quotas=_quotas(quota) if quota else None,
        ),
    )
    if cli.output.as_json:
        cli.output.document(made)
        return
    cli.output.text(made.key)
    cli.output.note(f"[dim]{made.id}, for the tenant {made.tenant}. It is not shown again.[/]")


def _quotas(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = int(value) if name in _QUOTAS else float(value)
        except ValueError:
            raise CliError(f"{text!r} is not NAME=number.", ExitCode.USAGE) from None
    return found


@command(keys, "revoke")
def revoke_key(
    cli: Cli, key: Annotated[str, typer.Argument(metavar="KEY_ID", help="The public part.")]
) -> None:
    """End a key for good; it stops working everywhere within five seconds."""
    cli.client.keys.revoke(key)
    if cli.output.as_json:
        cli.output.document({"id": key, "revoked": True})
    else:
        cli.output.note(f"{key} has ended.")


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to the tree, in that panel of its help."""
    command(app, "models", panel=panel)(list_models)
    command(app, "usage", panel=panel)(show_usage)
    app.add_typer(keys, name="keys", rich_help_panel=panel)

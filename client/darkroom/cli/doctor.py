"""`darkroom doctor`: what works, what does not, and what to do about it."""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer

from darkroom.cli.command import OPERATE, Cli, command
from darkroom.cli.failures import ExitCode, explain, identify_address
from darkroom.cli.output import ago, duration, plural, state_markup
from darkroom.cli.worker_checks import Check, check_models, check_queues, check_workers
from darkroom.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    ConfigurationError,
    DarkroomError,
    EmbeddingUnavailable,
    NotReady,
    PermissionDeniedError,
)

if TYPE_CHECKING:
    from darkroom import Client

    Probe = Callable[[Client], Iterator[Check]]

app = typer.Typer()

_TIMEOUT = 8.0
"""Seconds to wait for each answer: a doctor should not take long."""
_SKEW_WARNING = 5.0
"""Seconds; from here on, URLs of images and printed times are misleading."""
_SKEW_FAULT = 240.0
"""Seconds; at five minutes, every webhook's signature is too old."""
_NEARLY = 0.9
_SIGNS = {"ok": "✓", "warning": "!", "fault": "✗", "unknown": "·"}


@command(app, "doctor", panel=OPERATE)
def doctor(cli: Cli) -> None:
    """Check the whole system, and say what to do about what is wrong.

    It checks the server, clocks, Postgres, Redis, S3, the key, models, workers, the queue, search
    and webhooks. The exit code is 10 if it finds a fault; warnings leave it at 0.
    """
    checks: list[Check] = []
    for check in _run_checks(cli):
        checks.append(check)
        if not cli.output.as_json:
            _print(cli, check)
    faults = sum(check.state == "fault" for check in checks)
    warnings = sum(check.state == "warning" for check in checks)
    if cli.output.as_json:
        cli.output.document({"healthy": not faults, "checks": checks})
    elif faults or warnings:
        cli.output.note(f"\n{plural(faults, 'fault')}, {plural(warnings, 'warning')}.")
    else:
        cli.output.note("\n[green]Everything works.[/]")
    if faults:
        raise typer.Exit(ExitCode.FINDING)


def _run_checks(cli: Cli) -> Iterator[Check]:
    """All checks in order; if the server or the key fails, those that still make sense."""
    from darkroom import Client

    try:
        client = Client(cli.url, cli.api_key, timeout=_TIMEOUT, retries=0)
    except ConfigurationError as error:
        failure = explain(error)
        yield Check("settings", "fault", str(error), failure.advice if failure else None)
        return
    with client:
        server = _check_server(client)
        yield server
        if server.state == "fault":
            return
        yield from _guarded("clock", _check_clock, client)
        yield from _guarded("parts", _check_parts, client)
        key = next(iter(_guarded("key", _check_key, client)))
        yield key
        if key.state == "fault":
            return
        for name, probe in _WITH_KEY.items():
            yield from _guarded(name, probe, client)


def _guarded(name: str, probe: "Probe", client: "Client") -> Iterator[Check]:
    """The findings of `probe`, and one more if it fails."""
    try:
        yield from probe(client)
    except PermissionDeniedError as error:
        yield Check(name, "unknown", f"not checked: {error.detail or error.title}")
    except DarkroomError as error:
        failure = explain(error)
        advice = failure.advice if failure else None
        yield Check(name, "fault", failure.message if failure else str(error), advice)


def _print(cli: Cli, check: Check) -> None:
    if not cli.output.out.is_terminal:
        cli.output.text("\t".join((check.state, check.name, check.finding, check.advice or "")))
        return
    from rich.markup import escape
    from rich.table import Table

    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=1)
    line.add_column(width=9, style="bold")
    line.add_column(overflow="fold")
    text = escape(check.finding)
    if check.advice:
        text += f"\n[dim]→ {escape(check.advice)}[/]"
    sign = state_markup(check.state).replace(check.state, _SIGNS[check.state])
    line.add_row(sign, check.name, text)
    cli.output.out.print(line, soft_wrap=False)


def _check_server(client: "Client") -> Check:
    url = client.url
    try:
        served = client.health.live().version
    except APIConnectionError:
        return Check(
            "server",
            "fault",
            f"{url} does not answer",
            "Start it (`make run`), or set DARKROOM_URL to its address. A proxy or firewall may "
            "also be in the way.",
        )
    except (APIStatusError, APIResponseValidationError) as error:
        return Check("server", "fault", f"{url} is not Darkroom: {error}", identify_address(url))
    try:
        own = version("darkroom-client")
    except PackageNotFoundError:
        own = served  # running from a source tree that is not installed
    finding = f"{url}, version {served}"
    if own.split(".")[:2] != served.split(".")[:2]:
        advice = "They usually work together; install the same version if something looks odd."
        return Check("server", "warning", f"{finding}; this program is {own}", advice)
    return Check("server", "ok", finding)


def _check_clock(client: "Client") -> Iterator[Check]:
    skew = client.health.clock_skew()
    if skew is None:
        yield Check("clock", "unknown", "the server does not tell its time")
        return
    distance = abs(skew)
    if distance <= _SKEW_WARNING:
        yield Check("clock", "ok", "the server's clock agrees with this machine's")
        return
    direction = "ahead of" if skew > 0 else "behind"
    yield Check(
        "clock",
        "fault" if distance > _SKEW_FAULT else "warning",
        f"the server's clock is {duration(distance)} {direction} this machine's",
        "Set both clocks by NTP. From five minutes on, webhook signatures are refused.",
    )


_PART_ADVICE = {
    "database": "Nothing is accepted without Postgres. Check that it runs, and the API's log.",
    "redis": "Jobs are accepted and wait. Check that Redis runs and DARKROOM_REDIS_URL is right.",
    "storage": "Images can be neither written nor read. Check the S3 server and its keys.",
}


def _check_parts(client: "Client") -> Iterator[Check]:
    try:
        client.health.ready()
    except NotReady as error:
        for each in error.errors:
            part = each.parameter or "part"
            yield Check(part, "fault", each.message, _PART_ADVICE.get(part))
        return
    yield Check("parts", "ok", "database, Redis and storage answer")


def _check_key(client: "Client") -> Iterator[Check]:
    usage = client.usage()
    limits = {
        "requests per minute": usage.requests_per_minute,
        "concurrent jobs": usage.concurrent_jobs,
        "queued work": usage.queued_cost,
        "GPU-seconds of today": usage.gpu_seconds_per_day,
    }
    used_up = [
        name
        for name, each in limits.items()
        if each.limit and each.used is not None and each.used >= _NEARLY * each.limit
    ]
    if used_up:
        finding = f"{usage.key_id} has nearly used up: {', '.join(used_up)}"
        yield Check("key", "warning", finding, "`darkroom usage` says when it resets.")
    else:
        yield Check("key", "ok", f"{usage.key_id} is valid")


def _check_search(client: "Client") -> Iterator[Check]:
    try:
        client.search("an image", page_size=1).page()
    except EmbeddingUnavailable as error:
        advice = "Start a CPU worker: darkroom-server worker cpu"
        yield Check("search", "fault", str(error.detail), advice)
    else:
        yield Check("search", "ok", "answers")


def _check_images(client: "Client") -> Iterator[Check]:
    from humanize import naturalsize

    for job in client.jobs.list(state="succeeded").take(1):
        for image in client.jobs.get(job.id).images[:1]:
            try:
                data = client.images.download(image)
            except DarkroomError as error:
                advice = "The image is on record; check that the S3 server answers and has it."
                yield Check("images", "fault", f"{image.id} cannot be read: {error}", advice)
            else:
                yield Check("images", "ok", f"read {image.id}, {naturalsize(len(data))}")


def _check_webhooks(client: "Client") -> Iterator[Check]:
    endpoints = client.webhooks.endpoints.list().all()
    for endpoint in endpoints:
        if endpoint.disabled_reason in ("failing", "gone"):
            finding = f"{endpoint.url} was disabled: {endpoint.disabled_reason}"
        elif endpoint.failing_since is not None:
            finding = f"{endpoint.url} began failing {ago(endpoint.failing_since)}"
        else:
            continue
        advice = f"`darkroom webhooks deliveries --endpoint {endpoint.id}` shows its answers."
        yield Check("webhooks", "warning", finding, advice)
    if endpoints:
        yield Check("webhooks", "ok", f"{plural(len(endpoints), 'endpoint')} registered")


_WITH_KEY: "dict[str, Probe]" = {
    "models": check_models,
    "workers": check_workers,
    "queue": check_queues,
    "search": _check_search,
    "images": _check_images,
    "webhooks": _check_webhooks,
}

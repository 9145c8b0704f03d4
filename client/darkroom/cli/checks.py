"""What `darkroom doctor` looks at: each check says what it found and what to do about it."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from darkroom.cli.findings import Check, Look, State
from darkroom.cli.queue_checks import check_queues
from darkroom.cli.words import ago, plural, size, span

if TYPE_CHECKING:
    from darkroom import Client, Worker

_SKEW_WARNING = 5.0
"""Seconds; URLs of pictures and times in the output begin to mislead."""
_SKEW_FAULT = 240.0
"""Seconds; five minutes make every webhook's signature too old."""
_LAG_WARNING = 30.0
"""Seconds without a heartbeat, of which there should be one every ten."""
_GPUS = ("NVIDIA", "Tesla", "GeForce", "Quadro", "AMD Instinct", "AMD Radeon")
"""How the names of CUDA and ROCm devices begin."""
_NEARLY = 0.9


def look_at(client: "Client") -> Iterator[Check]:
    """Every check, one after the other; without a connection only the first ones."""
    reachable = _check_reachable(client)
    yield reachable
    if reachable.state == "fault":
        return
    yield from _guarded("clock", _check_clock, client)
    yield from _guarded("parts", _check_parts, client)
    key = next(iter(_guarded("key", _check_key, client)))
    yield key
    if key.state == "fault":
        return
    for name, look in _WITH_KEY.items():
        yield from _guarded(name, look, client)


def _guarded(name: str, look: Look, client: "Client") -> Iterator[Check]:
    """The checks of `look`; one more where it cannot be carried out."""
    from darkroom import DarkroomError, Forbidden
    from darkroom.cli.failures import explain

    try:
        yield from look(client)
    except Forbidden as error:
        yield Check(name, "unknown", f"not looked at: {error.detail or error.title}")
    except DarkroomError as error:
        failure = explain(error)
        advice = failure.advice if failure else None
        yield Check(name, "fault", failure.message if failure else str(error), advice)


def _check_reachable(client: "Client") -> Check:
    from darkroom import ApiError, NoAnswer, UnexpectedAnswer

    where = client.url
    try:
        served = client.health.live().version
    except NoAnswer:
        return Check(
            "server",
            "fault",
            f"{where} does not answer",
            "Start it (`make run`), or set DARKROOM_URL to where it runs; a proxy or firewall "
            "may also be in the way.",
        )
    except (ApiError, UnexpectedAnswer) as error:
        from darkroom.cli.failures import whose_address

        return Check("server", "fault", f"{where} is no Darkroom: {error}", whose_address(where))
    try:
        own = version("darkroom")
    except PackageNotFoundError:
        own = served  # run from a source tree that nobody installed
    finding = f"{where}, version {served}"
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
        yield Check("clock", "ok", "the server's and this machine's agree")
        return
    direction = "ahead of" if skew > 0 else "behind"
    yield Check(
        "clock",
        "fault" if distance > _SKEW_FAULT else "warning",
        f"the server's is {span(distance)} {direction} this machine's",
        "Set both clocks by NTP. From five minutes on, signatures of webhooks are refused.",
    )


_PART_ADVICE = {
    "database": "Without Postgres nothing is accepted. See the API's log, and that Postgres runs.",
    "redis": "Jobs are accepted and wait. See that Redis runs and DARKROOM_REDIS_URL is right.",
    "storage": "Pictures can be neither written nor read. See that the S3 server runs and its "
    "keys are right.",
}


def _check_parts(client: "Client") -> Iterator[Check]:
    from darkroom import NotReady

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
        "requests a minute": usage.requests_per_minute,
        "jobs at once": usage.concurrent_jobs,
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
        yield Check("key", "warning", finding, "`darkroom usage` says when it begins anew.")
    else:
        yield Check("key", "ok", f"{usage.key_id} is valid")


def _check_models(client: "Client") -> Iterator[Check]:
    models = client.models.list().all()
    if not models:
        advice = "Declare one in models.toml and restart the API."
        yield Check("models", "fault", "the server's catalogue has none", advice)
        return
    if any(model.served is None for model in models):
        yield Check("models", "warning", "nobody can say which are served: Redis is away")
        return
    for model in models:
        if not model.served:
            state: State = "fault" if model.default else "warning"
            advice = f"Start a worker for it: python -m worker generate --model {model.name}"
            yield Check("models", state, f"nobody serves {model.name}; its jobs wait", advice)
            continue
        workers = model.workers or ()
        devices = sorted({worker.device or "an unknown device" for worker in workers})
        finding = f"{model.name} is served by {plural(len(workers), 'worker')} on "
        yield Check("models", "ok", finding + ", ".join(devices))
    places = sorted({w.device or "an unknown device" for m in models for w in m.workers or ()})
    if places and not any(place.startswith(_GPUS) for place in places):
        finding = f"pictures are made on {', '.join(places)}: no GPU that this program knows"
        advice = "Fine for trying it out. For speed, start a worker where there is a CUDA device."
        yield Check("GPU", "warning", finding, advice)


def _check_workers(client: "Client") -> Iterator[Check]:
    from darkroom import NotFound

    try:
        workers = client.workers.list().all()
    except NotFound:
        yield Check("workers", "unknown", "the server is older than this program and cannot tell")
        return
    for worker in workers:
        yield _judge(worker)
    alive = [worker for worker in workers if worker.state != "away"]
    if not any(worker.kind == "cpu" for worker in alive):
        yield Check(
            "workers",
            "fault",
            "there is no CPU worker: no search, no webhooks, no batches, no recovery",
            "Start one: python -m worker cpu",
        )
    elif not any(worker.dispatches for worker in alive):
        advice = "It should choose itself within seconds; see the CPU workers' logs."
        yield Check("workers", "warning", "no worker leads the dispatcher just now", advice)


def _judge(worker: "Worker") -> Check:
    device = f", {worker.device}" if worker.device not in (None, worker.kind) else ""
    told = f"{worker.name} ({worker.kind or 'away'}{device})"
    if worker.state in ("away", "draining"):
        advice = f"`darkroom workers resume {worker.name}` lets it take work again."
        rest = "is away, and told to rest" if worker.state == "away" else "is draining"
        return Check("workers", "warning", f"{told} {rest}", advice)
    if worker.state == "faulty":
        advice = "It restarts itself; if it stays so, look at its log and its device."
        return Check("workers", "fault", f"{told} has lost its device", advice)
    broken = [model.name for model in worker.models if model.state == "broken"]
    if broken:
        advice = "Its log says why. Repair the checkpoint, then restart the worker."
        finding = f"{told} cannot load {', '.join(broken)}"
        return Check("workers", "fault", finding, advice)
    if worker.lag is not None and worker.lag > _LAG_WARNING:
        advice = "It may be stuck or cut off from Redis; its jobs go to others when leases end."
        finding = f"{told} was last heard of {span(worker.lag)} ago"
        return Check("workers", "warning", finding, advice)
    finding = f"{told} is {worker.state}, {plural(worker.jobs, 'job')} in hand"
    if worker.memory.used:
        finding += f", {size(worker.memory.used)} of models"
    return Check("workers", "ok", finding)


def _check_search(client: "Client") -> Iterator[Check]:
    from darkroom import EmbeddingUnavailable

    try:
        client.search("a picture", page_size=1).page()
    except EmbeddingUnavailable as error:
        yield Check(
            "search", "fault", str(error.detail), "Start a CPU worker: python -m worker cpu"
        )
    else:
        yield Check("search", "ok", "answers")


def _check_storage(client: "Client") -> Iterator[Check]:
    from darkroom import DarkroomError

    for job in client.jobs.list(state="succeeded").take(1):
        for image in client.jobs.get(job.id).images[:1]:
            try:
                data = client.images.download(image)
            except DarkroomError as error:
                advice = "The picture is on record; see that the S3 server has it, and answers."
                yield Check("pictures", "fault", f"{image.id} cannot be read: {error}", advice)
            else:
                yield Check("pictures", "ok", f"{image.id} was read, {size(len(data))}")


def _check_webhooks(client: "Client") -> Iterator[Check]:
    endpoints = client.webhooks.endpoints.list().all()
    for endpoint in endpoints:
        if endpoint.disabled_reason in ("failing", "gone"):
            finding = f"{endpoint.url} was switched off: {endpoint.disabled_reason}"
        elif endpoint.failing_since is not None:
            finding = f"{endpoint.url} has been failing since {ago(endpoint.failing_since)}"
        else:
            continue
        advice = f"`darkroom webhooks deliveries --endpoint {endpoint.id}` says what it answers."
        yield Check("webhooks", "warning", finding, advice)
    if endpoints:
        yield Check("webhooks", "ok", f"{plural(len(endpoints), 'receiver')} registered")


_WITH_KEY: dict[str, Look] = {
    "models": _check_models,
    "workers": _check_workers,
    "queue": check_queues,
    "search": _check_search,
    "pictures": _check_storage,
    "webhooks": _check_webhooks,
}

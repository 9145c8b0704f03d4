"""Checks of `darkroom doctor` on models, workers and queues: who does the work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from darkroom.cli.output import ago, duration, plural
from darkroom.errors import NotFoundError, PermissionDeniedError, WorkersUnknown

if TYPE_CHECKING:
    from darkroom import Client, QueueDepth, Worker

_LAG_WARNING = 30.0
"""Seconds without a heartbeat; one is due every ten."""
_QUEUE_WARNING = 60.0
"""Seconds that the oldest queued job may wait while workers are ready."""
_GPUS = ("NVIDIA", "Tesla", "GeForce", "Quadro", "AMD Instinct", "AMD Radeon")
"""How the names of CUDA and ROCm devices begin."""
_WORKING = ("starting", "warming", "ready", "busy")
"""States of workers that take jobs for their models, or soon will."""

State = Literal["ok", "warning", "fault", "unknown"]


@dataclass(frozen=True)
class Check:
    """One finding. `advice` is None if there is nothing to do."""

    name: str
    state: State
    finding: str
    advice: str | None = None


def check_models(client: "Client") -> Iterator[Check]:
    """Whether each model of the catalogue is served, and on which devices."""
    models = client.models.list().all()
    if not models:
        advice = "Declare one in models.toml and restart the API."
        yield Check("models", "fault", "the server's catalogue has no models", advice)
        return
    if any(model.served is None for model in models):
        yield Check("models", "warning", "unknown which are served, because Redis is unavailable")
        return
    for model in models:
        if not model.served:
            state: State = "fault" if model.default else "warning"
            advice = f"Start a worker for it: darkroom-server worker generate --model {model.name}"
            yield Check("models", state, f"no worker serves {model.name}; its jobs wait", advice)
            continue
        workers = model.workers or ()
        devices = sorted({worker.device or "an unknown device" for worker in workers})
        finding = f"{model.name} is served by {plural(len(workers), 'worker')} on "
        yield Check("models", "ok", finding + ", ".join(devices))
    devices = sorted({w.device or "an unknown device" for m in models for w in m.workers or ()})
    if devices and not any(device.startswith(_GPUS) for device in devices):
        finding = f"images are generated on {', '.join(devices)}, not a known GPU"
        advice = "Fine for trying it out. For speed, start a worker on a CUDA device."
        yield Check("GPU", "warning", finding, advice)


def check_workers(client: "Client") -> Iterator[Check]:
    """Every worker, and whether there are CPU workers with a dispatcher among them."""
    try:
        workers = client.workers.list().all()
    except NotFoundError:
        yield Check("workers", "unknown", "the server is older than this program and cannot tell")
        return
    for worker in workers:
        yield _check_worker(worker)
    alive = [worker for worker in workers if worker.state != "away"]
    if not any(worker.kind == "cpu" for worker in alive):
        yield Check(
            "workers",
            "fault",
            "there is no CPU worker: no search, no webhooks, no batches, no recovery",
            "Start one: darkroom-server worker cpu",
        )
    elif not any(worker.dispatches for worker in alive):
        advice = "One should take over within seconds; see the CPU workers' logs."
        yield Check("workers", "warning", "no worker is running the dispatcher right now", advice)


def _check_worker(worker: "Worker") -> Check:
    device = f", {worker.device}" if worker.device not in (None, worker.kind) else ""
    about = f"{worker.name} ({worker.kind or 'away'}{device})"
    if worker.state in ("away", "draining"):
        advice = f"`darkroom workers resume {worker.name}` lets it take work again."
        state = "is away, and will drain on its return" if worker.state == "away" else "is draining"
        return Check("workers", "warning", f"{about} {state}", advice)
    if worker.state == "faulty":
        advice = "It restarts itself; if this persists, check its log and its device."
        return Check("workers", "fault", f"{about} has lost its device", advice)
    broken = [model.name for model in worker.models if model.state == "broken"]
    if broken:
        advice = "Its log says why. Repair the checkpoint, then restart the worker."
        finding = f"{about} cannot load {', '.join(broken)}"
        return Check("workers", "fault", finding, advice)
    if worker.lag is not None and worker.lag > _LAG_WARNING:
        advice = (
            "It may be stuck, or cut off from Redis; its jobs move on when their leases expire."
        )
        finding = f"{about} was last seen {duration(worker.lag)} ago"
        return Check("workers", "warning", finding, advice)
    finding = f"{about} is {worker.state}, {plural(worker.jobs, 'job')} in flight"
    if worker.memory.used:
        from humanize import naturalsize

        finding += f", {naturalsize(worker.memory.used)} of models"
    return Check("workers", "ok", finding)


def check_queues(client: "Client") -> Iterator[Check]:
    """Every queue, for an operator's key; for another, the position of the key's own jobs."""
    try:
        queues = client.queues.list().all()
    except (PermissionDeniedError, NotFoundError):
        yield from _check_own_jobs(client)
        return
    try:
        workers: list[Worker] | None = client.workers.list().all()
    except WorkersUnknown:
        workers = None
    moving = {queue.model for queue in queues if queue.running}
    for queue in queues:
        yield check_queue(queue, workers, moves=queue.model in moving)


def check_queue(queue: "QueueDepth", workers: "Sequence[Worker] | None", *, moves: bool) -> Check:
    """One queue.

    Args:
        queue: as the server counts it.
        workers: all that the server knows; None while it does not know.
        moves: whether any job of the model is running. Bulk jobs may wait for interactive ones.
    """
    name = f"{queue.model}, {queue.queue_class}: "
    running = f"{queue.running:,} running"
    age = queue.oldest_age_seconds
    if not queue.queued or age is None:
        return Check("queue", "ok", f"{name}none waiting, {running}")
    finding = f"{name}{queue.queued:,} waiting, the oldest for {duration(age)}, {running}"
    advice = _queue_advice(queue, workers, moves) if age > _QUEUE_WARNING else None
    return Check("queue", "warning" if advice else "ok", finding, advice)


def _queue_advice(
    queue: "QueueDepth", workers: "Sequence[Worker] | None", moves: bool
) -> str | None:
    """What to do about a queue whose oldest job has waited long; None if that is as intended."""
    if workers is None:
        return "Unknown who serves it: Redis is unavailable. The jobs run once it is back."
    serving = [
        worker
        for worker in workers
        if any(each.name == queue.model and each.state != "broken" for each in worker.models)
    ]
    if not any(worker.state in _WORKING for worker in serving):
        for worker in serving:
            if worker.state == "draining" and worker.drain is not None:
                return (
                    f"Its worker is draining: `darkroom workers resume {worker.name}` lets it take "
                    "work again."
                )
        return (
            f"No worker serves it. Start one: darkroom-server worker generate --model {queue.model}"
        )
    if not moves:
        return "A worker serves it, yet nothing runs: see `darkroom workers list` and its log."
    if queue.queue_class == "interactive":
        return f"Jobs arrive faster than they run: start another worker for {queue.model}."
    return None


def _check_own_jobs(client: "Client") -> Iterator[Check]:
    """What a tenant's key can see; also all there is from a server without `GET /v1/queues`."""
    newest = client.jobs.list(state="queued").take(1)
    running = client.jobs.list(state="running", page_size=100).page()
    count = f"{len(running.data)}{'+' if running.next_cursor else ''} running"
    if not newest:
        yield Check("queue", "ok", f"none of your jobs is waiting, {count}")
        return
    job = client.jobs.get(newest[0].id)
    ahead = "unknown" if job.queue_position is None else f"{job.queue_position:,}"
    waiting = (datetime.now(UTC) - job.created_at).total_seconds()
    finding = f"{ahead} jobs ahead of your newest ({job.id}, {ago(job.created_at)}), {count}"
    if waiting > _QUEUE_WARNING and not running.data and job.batch_id is None:
        advice = "None of your jobs is running: is a worker for the model ready, and not draining?"
        yield Check("queue", "warning", finding, advice)
    else:
        yield Check("queue", "ok", finding)

"""What `darkroom doctor` says of the queues: how deep they are, and who is there to empty them."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from darkroom.cli.findings import Check
from darkroom.cli.words import ago, span

if TYPE_CHECKING:
    from darkroom import Client, QueueDepth, Worker

_LATE = 60.0
"""Seconds that the front of the queue may wait for workers that are ready."""
_AT_WORK = ("starting", "warming", "ready", "busy")
"""States of workers that take jobs of their models, or soon will."""


def check_queues(client: "Client") -> Iterator[Check]:
    """Every queue for an operator's key; else where the key's own jobs stand."""
    from darkroom import Forbidden, NotFound, WorkersUnknown

    try:
        queues = client.queues.list().all()
    except (Forbidden, NotFound):
        yield from _check_own_jobs(client)
        return
    try:
        workers: list[Worker] | None = client.workers.list().all()
    except WorkersUnknown:
        workers = None
    at_work = {queue.model for queue in queues if queue.running}
    for queue in queues:
        yield judge_queue(queue, workers, moves=queue.model in at_work)


def judge_queue(queue: "QueueDepth", workers: "Sequence[Worker] | None", *, moves: bool) -> Check:
    """One queue's finding.

    Args:
        queue: as the server counts it.
        workers: all that it knows; None while it cannot say.
        moves: whether any job of the model runs. Bulk jobs may wait for interactive ones.
    """
    told = f"{queue.model}, {queue.lane}: "
    running = f"{queue.running:,} running"
    age = queue.oldest_age_seconds
    if not queue.queued or age is None:
        return Check("queue", "ok", f"{told}none waits, {running}")
    told += f"{queue.queued:,} waiting, the oldest for {span(age)}, {running}"
    advice = _advice(queue, workers, moves) if age > _LATE else None
    return Check("queue", "warning" if advice else "ok", told, advice)


def _advice(queue: "QueueDepth", workers: "Sequence[Worker] | None", moves: bool) -> str | None:
    """What to do about a queue whose oldest job waits long; None where that is as it should be."""
    if workers is None:
        return "Nobody can say who serves it: Redis is away. They go on when it is back."
    serving = [worker for worker in workers if _serves(worker, queue.model)]
    if not any(worker.state in _AT_WORK for worker in serving):
        return _nobody(queue.model, serving)
    if not moves:
        return "A worker serves it, yet nothing runs: see `darkroom workers list` and its log."
    if queue.lane == "interactive":
        return f"More comes in than is done: start another worker for {queue.model}."
    return None


def _serves(worker: "Worker", model: str) -> bool:
    return any(each.name == model and each.state != "broken" for each in worker.models)


def _nobody(model: str, serving: "Sequence[Worker]") -> str:
    """What to do where no worker takes the model's jobs."""
    for worker in serving:
        if worker.state == "draining" and worker.drain is not None:
            return (
                f"Who serves it is draining: `darkroom workers resume {worker.name}` lets it take "
                "work again."
            )
    return f"Nobody serves it. Start a worker: python -m worker generate --model {model}"


def _check_own_jobs(client: "Client") -> Iterator[Check]:
    """What there is to see with a tenant's key, or of a server without `GET /v1/queues`."""
    newest = client.jobs.list(state="queued").take(1)
    running = client.jobs.list(state="running", page_size=100).page()
    at_work = f"{len(running.data)}{'+' if running.next_cursor else ''} running"
    if not newest:
        yield Check("queue", "ok", f"none of your jobs waits, {at_work}")
        return
    job = client.jobs.get(newest[0].id)
    ahead = "unknown" if job.queue_position is None else f"{job.queue_position:,}"
    waits = (datetime.now(UTC) - job.created_at).total_seconds()
    finding = f"{ahead} jobs go before your newest ({job.id}, {ago(job.created_at)}), {at_work}"
    if waits > _LATE and not running.data and job.batch_id is None:
        advice = "Nothing of yours runs: is a worker for the model ready, and not draining?"
        yield Check("queue", "warning", finding, advice)
    else:
        yield Check("queue", "ok", finding)

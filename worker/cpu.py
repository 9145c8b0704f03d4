"""Start a CPU worker: the dispatcher, query embeddings, webhooks, housekeeping."""

from collections.abc import Callable
from typing import Protocol

import redis
from celery import Celery, signals

from shared.core import broker
from shared.core.broker import celery_app
from shared.core.database import open_engine, session_factory
from shared.core.logging import get_logger
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import load_catalog
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.worker_registry import WorkerState
from worker.core.consumer import consume
from worker.core.draining import Drain, forgetting
from worker.core.heartbeat import Announcement, redis_client
from worker.core.identity import take_name
from worker.core.liveness import ConsumerWatch
from worker.core.metrics import WorkerMetrics
from worker.core.queues import QueueGates
from worker.maintenance.backlog import BacklogMetrics
from worker.maintenance.bulk_enqueuer import BulkFeeder
from worker.maintenance.cleanup import BatchFiles, Leftovers, Retention
from worker.maintenance.estimator import EtaKeeper
from worker.maintenance.leader import Dispatcher
from worker.maintenance.periodic import DeliveryDuties, JobDuties
from worker.search.embed_query import EmbeddingModels, register_embed
from worker.search.embedders import load_picture_model
from worker.search.reembed import EmbeddingKeeper, PictureKeeper
from worker.tasks import register_deliver
from worker.webhooks.deliver import Deliverer
from worker.webhooks.progress import WebhookHints

log = get_logger(__name__)

_THREADS = 8
_QUEUES = (broker.EMBED_QUEUE, broker.WEBHOOK_QUEUE)


def run_cpu_worker(settings: Settings) -> None:
    """Serve everything that needs no GPU until told to stop."""
    engine = open_engine(settings, pool_size=_THREADS + 4)
    identity = take_name(engine, settings.worker_name, "cpu")
    client = redis_client(settings)
    app = celery_app(settings)
    database = session_factory(engine)
    storage = Storage(settings)
    hints = WebhookHints(app)
    deliverer = Deliverer(settings, database, storage, hints)
    register_deliver(app, deliverer)
    models = EmbeddingModels(settings)
    picture_model = load_picture_model(settings)
    register_embed(app, models, picture_model, client)
    backlog = BacklogMetrics(load_catalog(settings.models_file), database)
    duties = [
        *JobDuties(settings, database, client, app).duties,
        *Retention(settings, database, storage).duties,
        *BatchFiles(database, storage).duties,
        *Leftovers(database, storage).duties,
        *DeliveryDuties(database, client, hints).duties,
        forgetting(database),
        *backlog.duties,
    ]
    tasks = TasksInHand()

    def idle() -> bool:
        return tasks.count == 0 and deliverer.idle

    drain = Drain(settings, database, client, lambda: identity.name, idle)
    watch = _watched(settings, client, app, drain, idle)
    dispatcher = Dispatcher(settings, engine, duties, lambda: not drain.rests)
    keepers: list[_Keeper] = [
        BulkFeeder(database, client, app, lambda: dispatcher.leads),
        EtaKeeper(database, client, lambda: dispatcher.leads),
        EmbeddingKeeper(settings, engine, database, models, lambda: dispatcher.leads),
    ]
    if picture_model is not None:
        keepers.append(
            PictureKeeper(
                settings,
                engine,
                database,
                storage,
                model=picture_model,
                leads=lambda: dispatcher.leads,
            )
        )
    announcement = Announcement(
        settings,
        client,
        lambda: identity.name,
        lambda: {
            "kind": "cpu",
            "state": WorkerState.FAULTY if watch.stalled else _state(drain, tasks),
            "device": "cpu",
            "jobs": tasks.count,
            "threads": _THREADS,
            "dispatches": dispatcher.leads,
        },
    )

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        log.info("worker_ready", worker=identity.name)
        models.load()  # takes seconds; the first query should not be the one to wait

    backlog.leads = lambda: dispatcher.leads
    collector = WorkerMetrics(announcement.facts)
    metrics = MetricsListener(settings, backlog, collector, alive=lambda: not watch.stalled)
    metrics.start()
    dispatcher.start()
    for keeper in keepers:
        keeper.start()
    announcement.start()
    drain.start(announcement.renew)
    watch.attach(announcement.renew)
    try:
        consume(app, identity.name, _QUEUES, _THREADS)
        drain.fulfil()
    finally:
        for keeper in keepers:
            keeper.close()
        dispatcher.close()
        deliverer.close()
        announcement.close()
        metrics.close()
        drain.close()
        identity.close()
        storage.close()
        engine.dispose()


def _watched(
    settings: Settings,
    client: "redis.Redis",
    app: Celery,
    drain: Drain,
    idle: Callable[[], bool],
) -> ConsumerWatch:
    """The gates of the consumer, and who looks whether it takes what they let through."""
    gates = QueueGates()
    gates.add(lambda _: not drain.rests)
    gates.attach(app)
    return ConsumerWatch(client, gates, _QUEUES, idle, settings.stall_limit.total_seconds())


class _Keeper(Protocol):
    """A thread that works while its process leads."""

    def start(self) -> None: ...
    def close(self) -> None: ...


class TasksInHand:
    """How many Celery tasks this process is at."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        signals.task_prerun.connect(self._begun, weak=False)
        signals.task_postrun.connect(self._ended, weak=False)

    @property
    def count(self) -> int:
        """Tasks begun and not ended."""
        return len(self._ids)

    def _begun(self, task_id: str, **_: object) -> None:
        self._ids.add(task_id)

    def _ended(self, task_id: str, **_: object) -> None:
        self._ids.discard(task_id)


def _state(drain: Drain, tasks: TasksInHand) -> WorkerState:
    if drain.rests:
        return WorkerState.DRAINING
    return WorkerState.BUSY if tasks.count else WorkerState.READY

"""Start a CPU worker: the dispatcher, query embeddings, webhooks, housekeeping."""

from collections.abc import Callable
from typing import Protocol

import redis
from celery import Celery, signals

from shared.database import open_engine, session_factory
from shared.fleet.announcement import WorkerState
from shared.logging import get_logger
from shared.metrics.exposition import MetricsListener
from shared.model_catalog import load_catalog
from shared.queue import names
from shared.queue.publish import celery_app
from shared.settings import Settings
from shared.storage import Storage
from worker.app import consume
from worker.dispatch.batch_files import BatchFiles
from worker.dispatch.delivery_duties import DeliveryDuties
from worker.dispatch.dispatcher import Dispatcher
from worker.dispatch.duties import JobDuties
from worker.dispatch.eta_keeper import EtaKeeper
from worker.dispatch.feeder import BulkFeeder
from worker.dispatch.leftovers import Leftovers
from worker.dispatch.retention import Retention
from worker.embedding.embed_pictures import PictureKeeper
from worker.embedding.embed_query import EmbeddingModels, register_embed
from worker.embedding.picture_embedder import load_picture_model
from worker.embedding.reembed import EmbeddingKeeper
from worker.fleet.announce import Announcement, redis_client
from worker.fleet.draining import Drain, forgetting
from worker.fleet.identity import take_name
from worker.metrics.backlog import BacklogMetrics
from worker.metrics.process import WorkerMetrics
from worker.queue.gates import QueueGates
from worker.queue.liveness import ConsumerWatch
from worker.tasks import register_deliver
from worker.webhooks.deliver import Deliverer
from worker.webhooks.hints import WebhookHints

log = get_logger(__name__)

_THREADS = 8
_QUEUES = (names.EMBED_QUEUE, names.WEBHOOK_QUEUE)


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

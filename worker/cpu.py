"""Start a CPU worker: the dispatcher, query embeddings, webhooks, housekeeping."""

import threading
from contextlib import ExitStack

from celery import Celery, Task, signals
from sqlalchemy import Engine

from shared.core import broker, telemetry
from shared.core.broker import celery_app, read_id
from shared.core.database import open_engine, session_factory
from shared.core.logging import get_logger
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import load_catalog
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.worker_registry import WorkerState
from shared.jobs import metrics as job_metrics
from worker.core.consumer import consume, header_of
from worker.core.draining import Drain
from worker.core.loop import BackgroundLoop
from worker.core.metrics import WorkerMetrics, probes
from worker.core.queues import ConsumeFilters, ConsumerWatch
from worker.core.registration import Heartbeat, Identity, redis_client, take_name
from worker.maintenance.backlog import BacklogMetrics
from worker.maintenance.bulk_enqueuer import BulkEnqueuer
from worker.maintenance.cleanup import Cleanup
from worker.maintenance.estimator import Estimator
from worker.maintenance.leader import Dispatcher, periodic_tasks
from worker.maintenance.recovery import Recovery
from worker.search.embed_query import EmbeddingModels, register_embed
from worker.search.embedders import load_image_embedding_model
from worker.search.reembed import ImageIndexer, PromptIndexer
from worker.webhooks.deliver import Deliverer
from worker.webhooks.progress import WebhookNotifier

log = get_logger(__name__)

_THREADS = 8
_QUEUES = (broker.EMBED_QUEUE, broker.WEBHOOK_QUEUE)


def run_cpu_worker(settings: Settings) -> None:
    """Serve everything that needs no GPU until told to stop."""
    with ExitStack() as stack:
        engine = open_engine(settings, pool_size=_THREADS + 4)
        stack.callback(engine.dispose)
        identity = take_name(engine, settings.worker_name, "cpu")
        stack.callback(identity.close)
        _serve(settings, engine, identity, stack)


def _serve(settings: Settings, engine: Engine, identity: Identity, stack: ExitStack) -> None:
    """What is put on the stack is closed in reverse order."""
    client = redis_client(settings)
    app = celery_app(settings)
    database = session_factory(engine)
    storage = Storage(settings)
    stack.callback(storage.close)
    deliverer = Deliverer(settings, database, storage, WebhookNotifier(app))
    register_deliver(app, deliverer)
    models = EmbeddingModels(settings)
    image_embedding_model = load_image_embedding_model(settings)
    register_embed(app, models, image_embedding_model, client)
    tasks = _running_tasks()
    consumes = threading.Event()

    def is_idle() -> bool:
        return not tasks and deliverer.is_idle

    drain = Drain(settings, database, client, lambda: identity.name, is_idle)
    filters = ConsumeFilters()
    filters.add(lambda _: not drain.is_draining)
    filters.attach(app)
    watch = ConsumerWatch(client, filters, _QUEUES, is_idle, settings.stall_limit.total_seconds())
    catalog = load_catalog(settings.models_file)
    job_metrics.watch_models(spec.name for spec in catalog.model)
    backlog = BacklogMetrics(catalog, database)
    dispatcher = Dispatcher(
        settings,
        engine,
        periodic_tasks(
            Recovery(settings, database, client, app), Cleanup(settings, database, storage), backlog
        ),
        lambda: not drain.is_draining,
    )
    backlog.is_leader = dispatcher.is_leader
    loops: list[BackgroundLoop] = [
        dispatcher,
        BulkEnqueuer(database, client, app, dispatcher.is_leader),
        Estimator(database, client, dispatcher.is_leader),
        PromptIndexer(settings, engine, database, models, dispatcher.is_leader),
    ]
    if image_embedding_model is not None:
        loops.append(
            ImageIndexer(
                settings,
                engine,
                database,
                storage,
                model=image_embedding_model,
                is_leader=dispatcher.is_leader,
            )
        )
    heartbeat = Heartbeat(
        settings,
        client,
        lambda: identity.name,
        lambda: {
            "kind": "cpu",
            "state": WorkerState.FAULTY if watch.stalled else _state(consumes, drain, tasks),
            "device": "cpu",
            "jobs": len(tasks),
            "threads": _THREADS,
            "dispatches": dispatcher.is_leader(),
        },
    )
    drain.on_change = heartbeat.renew
    watch.attach(heartbeat.renew)

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        consumes.set()
        heartbeat.renew()
        log.info("worker_ready", worker=identity.name)
        models.load()  # takes seconds; the first query should not be the one to wait

    metrics = MetricsListener(
        settings, backlog, WorkerMetrics(heartbeat.facts), probes=probes(heartbeat.facts)
    )
    metrics.start()
    stack.enter_context(drain)
    stack.callback(metrics.close)
    stack.enter_context(heartbeat)
    stack.callback(deliverer.close)
    for loop in loops:
        stack.enter_context(loop)
    consume(app, identity.name, _QUEUES, _THREADS)
    drain.complete()


def register_deliver(app: Celery, deliverer: Deliverer) -> None:
    """The task of CPU workers: a webhook delivery is due."""

    @app.task(name=broker.DELIVER_TASK, bind=True)
    def deliver(task: Task, delivery_id: object) -> None:
        known = read_id("message", delivery_id)
        if known is not None:
            deliverer.offer(known, header_of(task, telemetry.TRACEPARENT))


def _running_tasks() -> set[str]:
    """The ids of the Celery tasks that this process is running: a set that follows them."""
    ids: set[str] = set()

    @signals.task_prerun.connect(weak=False)
    def begun(task_id: str, **_: object) -> None:
        ids.add(task_id)

    @signals.task_postrun.connect(weak=False)
    def ended(task_id: str, **_: object) -> None:
        ids.discard(task_id)

    return ids


def _state(consumes: threading.Event, drain: Drain, tasks: set[str]) -> WorkerState:
    if not consumes.is_set():
        return WorkerState.STARTING
    if drain.is_draining:
        return WorkerState.DRAINING
    return WorkerState.BUSY if tasks else WorkerState.READY

"""Start a generate worker: load and warm the models, release a former life's jobs, then consume."""

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery, Task, signals
from celery.exceptions import Reject
from sqlalchemy import Engine as SqlEngine
from sqlalchemy.orm import Session, sessionmaker

from shared.core import broker, telemetry
from shared.core.broker import celery_app, read_id
from shared.core.database import open_engine, session_factory
from shared.core.errors import WorkerLost
from shared.core.filters import Filters
from shared.core.logging import get_logger
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import ModelSpec, load_catalog
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.worker_registry import WorkerState
from shared.jobs import metrics as job_metrics
from shared.jobs.queries import claims
from worker.core.consumer import consume, header_of
from worker.core.draining import Drain
from worker.core.metrics import MODEL_LOAD_SECONDS, WorkerMetrics, probes
from worker.core.queues import BulkSlots, ConsumeFilters, ConsumerWatch, bulk_limit, when_leaving
from worker.core.registration import Heartbeat, Identity, redis_client, take_name
from worker.engine import open_engine as open_image_engine
from worker.engine.interface import Engine, FaultCallback
from worker.jobs.claim import WorkerLeaving
from worker.jobs.inputs import PromptRows
from worker.jobs.lease import LeaseRenewer, StopListener
from worker.jobs.progress import ProgressReporter
from worker.jobs.run import run_job
from worker.models.cache import ModelCache
from worker.models.controlnets import ControlNetFiles
from worker.models.loader import ModelLoader
from worker.models.loras import LoraFiles
from worker.process import WorkerProcess
from worker.search.embedders import Embedder
from worker.webhooks.progress import ProgressWebhooks, WebhookNotifier

if TYPE_CHECKING:
    from worker.jobs.signing import ImageSigner

log = get_logger(__name__)
_S3_CONNECTIONS = 32
_REQUEUE_SECONDS = 0.2

_CONNECTIONS = 10
"""Postgres connections: claims and commits take milliseconds, so few serve many threads."""


def run_generate_worker(settings: Settings, specs: Sequence[ModelSpec]) -> None:
    """Serve these models until told to stop.

    Raises:
        ModelUnavailable: a checkpoint cannot be served; nothing was consumed.
        FilterUnavailable: the filters cannot be loaded, and no image may pass unseen.
        SettingsError: images are to be signed and cannot be, or there is no filter of a name.
        SQLAlchemyError: the database cannot be reached at the start.
    """
    with ExitStack() as stack:
        # Claims and commits are tried again after an outage, so they need not ask beforehand.
        engine = open_engine(settings, pool_size=_CONNECTIONS, pre_ping=False)
        stack.callback(engine.dispose)
        # A pool of its own: renewals of leases never wait behind commits.
        renewals = open_engine(settings, pool_size=1)
        stack.callback(renewals.dispose)
        identity = take_name(engine, settings.worker_name, "generate")
        stack.callback(identity.close)
        worker = _build(settings, specs, identity, session_factory(engine), renewals)
        stack.callback(worker.close)
        _serve(worker, stack)


def _build(
    settings: Settings,
    specs: Sequence[ModelSpec],
    identity: Identity,
    database: sessionmaker[Session],
    renewals: SqlEngine,
) -> WorkerProcess:
    client = redis_client(settings)
    app = celery_app(settings)
    notifier = WebhookNotifier(app)
    leases = LeaseRenewer(settings, session_factory(renewals), lambda: identity.name)
    storage = Storage(settings, max_connections=_S3_CONNECTIONS)
    provenance = {spec.name: spec.provenance or settings.provenance for spec in specs}
    worker = WorkerProcess(
        settings=settings,
        identity=identity,
        celery=app,
        database=database,
        redis=client,
        storage=storage,
        prompts=PromptRows(Embedder(settings)),
        leases=leases,
        progress=ProgressReporter(client, notifier, ProgressWebhooks(database, notifier)),
        drain_order=Drain(
            settings, database, client, lambda: identity.name, lambda: leases.is_idle
        ),
        models=ModelCache(
            specs,
            lambda spec: _start_engine(spec, settings.device, worker.device_failed),
            limit=settings.model_memory,
            stay=settings.model_stay.total_seconds(),
        ),
        loras=LoraFiles(load_catalog(settings.models_file).lora, storage),
        controlnets=ControlNetFiles(load_catalog(settings.models_file).controlnet),
        provenance=provenance,
        signer=_signer(settings) if "signed" in provenance.values() else None,
        filters=_open_filters(settings, specs),
    )
    return worker


def _signer(settings: Settings) -> "ImageSigner":
    from worker.jobs.signing import ImageSigner  # it takes time and memory that few need

    return ImageSigner(settings)


def _open_filters(settings: Settings, specs: Sequence[ModelSpec]) -> Filters | None:
    filters = Filters(settings, "image", specs)
    return filters if filters.may_look else None


def _serve(worker: WorkerProcess, stack: ExitStack) -> None:
    """Warm up, then run jobs; what is put on the stack is closed in reverse order."""
    settings, client = worker.settings, worker.redis
    models, drain = worker.models, worker.drain_order
    heartbeat = Heartbeat(settings, client, lambda: worker.name, worker.heartbeat)
    metrics = MetricsListener(
        settings,
        WorkerMetrics(worker.heartbeat, lambda: models.engines),
        probes=probes(worker.heartbeat),
    )
    job_metrics.watch_models(spec.name for spec in models.specs)
    metrics.start()
    stack.callback(metrics.close)
    worker.state = WorkerState.WARMING
    if worker.filters is not None:
        worker.filters.start()
    _take_back(worker)
    stack.enter_context(heartbeat)
    models.changed = drain.on_change = heartbeat.renew
    models.load_first()
    stack.enter_context(drain)
    worker.leases.start()
    stack.enter_context(StopListener(client, worker.leases))
    _connect_signals(worker, heartbeat)
    register_generate(worker.celery, worker)
    queues = [
        broker.generate_queue(spec.name, queue_class)
        for queue_class in broker.QUEUE_CLASSES
        for spec in models.specs
    ]
    rows = max(engine.model.batch_size for engine in models.engines.values())
    worker.threads = settings.worker_threads or _threads(rows)
    filters = ConsumeFilters()
    filters.add(lambda _: not drain.is_draining)
    filters.add(models.accepts)
    BulkSlots(bulk_limit(worker.threads, rows)).attach(filters)
    filters.attach(worker.celery)
    worker.watch = ConsumerWatch(
        client,
        filters,
        queues,
        lambda: worker.leases.is_idle,
        settings.stall_limit.total_seconds(),
    )
    worker.watch.attach(heartbeat.renew)
    stack.enter_context(
        ModelLoader(
            models,
            client,
            lambda: worker.name,
            lambda: worker.claims,
            settings.model_load_delay.total_seconds(),
        )
    )
    consume(worker.celery, worker.name, queues, worker.threads)
    drain.complete()


def register_generate(app: Celery, worker: WorkerProcess) -> None:
    """The task of generate workers: run one job."""

    @app.task(name=broker.GENERATE_TASK, bind=True)
    def generate(task: Task, job_id: object) -> None:
        known = read_id("message", job_id)
        if known is None:
            return
        request_id = header_of(task, telemetry.REQUEST_ID)
        bound = {} if request_id is None else {telemetry.REQUEST_ID: request_id}
        try:
            with structlog.contextvars.bound_contextvars(**bound):
                run_job(worker, known, header_of(task, telemetry.TRACEPARENT))
        except WorkerLeaving:
            # Back to the queue, for a worker that stays; slowly, because a worker whose device is
            # lost keeps consuming for the seconds that it takes to leave.
            threading.Event().wait(_REQUEUE_SECONDS)
            raise Reject("this worker is leaving", requeue=True) from None


def _start_engine(spec: ModelSpec, device: str | None, on_fault: FaultCallback) -> Engine:
    """Warm before ready: a real image at every configured size, before the first job.

    Raises:
        ModelUnavailable: the checkpoint cannot be served.
    """
    engine = open_image_engine(spec, device=device, on_fault=on_fault)
    try:
        with MODEL_LOAD_SECONDS.labels(spec.name, "load").time():
            engine.load()
        with MODEL_LOAD_SECONDS.labels(spec.name, "warm_up").time():
            report = engine.warm_up()
    except BaseException:
        engine.close()
        raise
    log.info(
        "model_ready",
        model=spec.name,
        device=engine.model.device,
        batch_size=report.batch_size,
        batch_size_is="set" if spec.max_batch_size else "measured",
        agreeing_batch_sizes=report.agreeing_sizes,
        cpu_threads=engine.model.cpu_threads,
        tick_ms={
            f"{tick.width}x{tick.height} at {tick.batch_size}": round(tick.seconds * 1000, 1)
            for tick in report.tick_times
        },
        seconds=round(report.seconds, 2),
    )
    return engine


def _take_back(worker: WorkerProcess) -> None:
    """Jobs that a former life of this worker still holds run again at once."""
    with worker.database.begin() as session:
        jobs = session.scalars(claims.release_leases_of(worker.name, worker.settings.lease)).all()
    for job in jobs:
        job_metrics.lost(job, WorkerLost.code)
        worker.progress.job_changed(job)
        if job.state == "queued":
            worker.publish(job)
    if jobs:
        log.warning("took_back_jobs", count=len(jobs))


def _threads(rows: int) -> int:
    """Two for each row keep it busy while other jobs are encoded and committed; a third is a
    reserve that bulk jobs cannot take (see `worker.core.queues`)."""
    return 3 * (rows + 1)


def _connect_signals(worker: WorkerProcess, heartbeat: Heartbeat) -> None:
    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        worker.state = WorkerState.READY
        heartbeat.renew()
        log.info("worker_ready", worker=worker.name, pid=os.getpid())

    def leave() -> None:
        worker.drain(worker.settings.shutdown_grace.total_seconds())
        heartbeat.wake()  # renewed by its own thread: here a second signal would wait for the first

    when_leaving(leave)

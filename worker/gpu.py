"""Start a GPU worker: load and warm the models, take back a former life's jobs, then consume."""

import os
from collections.abc import Sequence
from typing import Any

from celery import signals

from shared.core import broker
from shared.core.broker import celery_app
from shared.core.database import open_engine, session_factory
from shared.core.errors import WorkerLost
from shared.core.logging import get_logger
from shared.core.metrics import MetricsListener
from shared.core.model_catalog import ModelSpec
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.core.worker_registry import WorkerState
from shared.jobs import metrics as job_metrics
from shared.jobs.queries import claims
from worker.core.consumer import consume
from worker.core.draining import Drain
from worker.core.heartbeat import Announcement, redis_client
from worker.core.identity import take_name
from worker.core.liveness import ConsumerWatch
from worker.core.metrics import MODEL_LOAD_SECONDS, WorkerMetrics
from worker.core.queues import BulkSlots, QueueGates, bulk_limit
from worker.engine import Engine, FaultCallback
from worker.engine import open_engine as open_image_engine
from worker.jobs.inputs import PromptRows
from worker.jobs.lease import LeaseKeeper, StopSignals
from worker.jobs.progress import ProgressReporter
from worker.models.cache import Residency
from worker.models.loader import ModelKeeper
from worker.process import WorkerProcess
from worker.search.embedders import Embedder
from worker.tasks import register_generate
from worker.webhooks.progress import ProgressWebhooks, WebhookHints

log = get_logger(__name__)


_S3_CONNECTIONS = 32


_CONNECTIONS = 10
"""Postgres connections: claims and commits take milliseconds, so few serve many threads."""


def run_generate_worker(settings: Settings, specs: Sequence[ModelSpec]) -> None:
    """Serve these models until told to stop.

    Raises:
        ModelUnavailable: a checkpoint cannot be served; nothing was consumed.
        SQLAlchemyError: the ledger cannot be reached at the start.
    """
    # Claims and commits are tried again after an outage, so they need not ask beforehand.
    engine = open_engine(settings, pool_size=_CONNECTIONS, pre_ping=False)
    identity = take_name(engine, settings.worker_name, "generate")
    database = session_factory(engine)
    client = redis_client(settings)
    app = celery_app(settings)
    hints = WebhookHints(app)
    # A pool of its own: heartbeats never wait behind commits.
    heartbeats = open_engine(settings, pool_size=1)
    leases = LeaseKeeper(settings, session_factory(heartbeats), lambda: identity.name)
    drain = Drain(settings, database, client, lambda: identity.name, lambda: leases.idle)
    models = Residency(
        specs,
        lambda spec: _start_engine(spec, settings.device, worker.device_failed),
        limit=settings.model_memory,
        stay=settings.model_stay.total_seconds(),
    )
    worker = WorkerProcess(
        settings=settings,
        identity=identity,
        celery=app,
        database=database,
        redis=client,
        storage=Storage(settings, max_connections=_S3_CONNECTIONS),
        prompts=PromptRows(Embedder(settings)),
        leases=leases,
        progress=ProgressReporter(client, hints, ProgressWebhooks(database, hints)),
        drain_order=drain,
        models=models,
    )
    announcement = Announcement(settings, client, lambda: identity.name, worker.announcement)
    stop_signals = StopSignals(client, worker.leases)
    keeper = ModelKeeper(
        models,
        client,
        lambda: identity.name,
        lambda: worker.claims,
        settings.model_patience.total_seconds(),
    )
    collector = WorkerMetrics(worker.announcement, lambda: models.engines)
    metrics = MetricsListener(settings, collector, alive=lambda: not worker.is_faulty)
    metrics.start()
    worker.state = WorkerState.WARMING
    try:
        _take_back(worker)
        announcement.start()
        models.changed = announcement.renew
        models.load_first()
        drain.start(announcement.renew)
        worker.leases.start()
        stop_signals.start()
        _announce_signals(worker, announcement)
        register_generate(worker.celery, worker)
        queues = [broker.generate_queue(spec.name, lane) for lane in broker.LANES for spec in specs]
        rows = max(engine.model.rows for engine in models.engines.values())
        worker.threads = settings.worker_threads or _threads(rows)
        gates = _gates(models, drain, BulkSlots(bulk_limit(worker.threads, rows)))
        gates.attach(app)
        worker.watch = ConsumerWatch(
            client, gates, queues, lambda: leases.idle, settings.stall_limit.total_seconds()
        )
        worker.watch.attach(announcement.renew)
        keeper.start()
        consume(app, worker.name, queues, worker.threads)
        drain.fulfil()
    finally:
        keeper.close()
        metrics.close()
        announcement.close()
        stop_signals.close()
        drain.close()
        worker.close()
        identity.close()
        heartbeats.dispose()
        engine.dispose()


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
        rows=report.rows,
        rows_are="set" if spec.rows else "measured; set them in models.toml to keep bytes the same",
        tick_ms={
            f"{tick.width}x{tick.height} at {tick.rows}": round(tick.seconds * 1000, 1)
            for tick in report.tick_times
        },
        seconds=round(report.seconds, 2),
    )
    return engine


def _gates(models: Residency, drain: Drain, slots: BulkSlots) -> QueueGates:
    """What must hold for a queue before messages are taken from it."""
    gates = QueueGates()
    gates.add(lambda _: not drain.rests)
    gates.add(models.admits)
    slots.attach(gates)
    return gates


def _take_back(worker: WorkerProcess) -> None:
    """Jobs that a former life of this worker still holds run again at once."""
    with worker.database.begin() as session:
        jobs = session.scalars(claims.release_leases_of(worker.name)).all()
    for job in jobs:
        job_metrics.lost(job, WorkerLost.code)
        worker.progress.job_changed(job)
        if job.state == "queued":
            worker.publish(job)
    if jobs:
        log.warning("took_back_jobs", count=len(jobs))


def _threads(rows: int) -> int:
    """Twice the rows, so that every row is busy while other jobs are encoded and committed, and
    a reserve that bulk jobs cannot take (see `worker.core.queues`)."""
    return 3 * (rows + 1)


def _announce_signals(worker: WorkerProcess, announcement: Announcement) -> None:
    @signals.worker_ready.connect(weak=False)
    def ready(**_: Any) -> None:
        worker.state = WorkerState.READY
        announcement.renew()
        log.info("worker_ready", worker=worker.name, pid=os.getpid())

    @signals.worker_shutting_down.connect(weak=False)
    def shutting_down(**_: Any) -> None:
        worker.drain(worker.settings.shutdown_grace.total_seconds())
        announcement.renew()

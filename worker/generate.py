"""Start a GPU worker: load and warm the models, take back a former life's jobs, then consume."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import signals

from shared.database import open_engine, session_factory
from shared.errors import WorkerLost
from shared.fleet.announcement import WorkerState
from shared.jobs import statements
from shared.logging import get_logger
from shared.metrics import jobs as job_metrics
from shared.metrics.exposition import MetricsListener
from shared.model_catalog import ModelSpec
from shared.queue import names
from shared.queue.publish import celery_app
from shared.settings import Settings
from shared.storage import Storage
from worker.announce import Announcement, redis_client
from worker.app import consume
from worker.bulk_slots import BulkSlots, bulk_limit
from worker.draining import Drain
from worker.embedder import Embedder
from worker.engine import open_engine as open_image_engine
from worker.identity import take_name
from worker.intake import Intake
from worker.leases import LeaseKeeper
from worker.metrics.families import MODEL_LOAD_SECONDS
from worker.metrics.process import WorkerMetrics
from worker.process import WorkerProcess
from worker.progress import ProgressReporter
from worker.progress_webhooks import ProgressWebhooks
from worker.stop_signals import StopSignals
from worker.tasks import register_generate
from worker.webhook_hints import WebhookHints

log = get_logger(__name__)

_UPLOAD_THREADS = 16
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
    worker = WorkerProcess(
        settings=settings,
        identity=identity,
        celery=app,
        database=database,
        redis=client,
        storage=Storage(settings, max_connections=2 * _UPLOAD_THREADS),
        embedder=Embedder(settings),
        leases=leases,
        progress=ProgressReporter(client, hints, ProgressWebhooks(database, hints)),
        uploads=ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload"),
        drain_order=drain,
        specs=specs,
    )
    announcement = Announcement(settings, client, lambda: identity.name, worker.announcement)
    stop_signals = StopSignals(client, worker.leases)
    collector = WorkerMetrics(worker.announcement, lambda: worker.engines)
    metrics = MetricsListener(settings, collector)
    metrics.start()
    worker.state = WorkerState.WARMING
    try:
        _take_back(worker)
        announcement.start()
        _load(worker, specs)
        drain.start(announcement.renew)
        worker.leases.start()
        stop_signals.start()
        _announce_signals(worker, announcement)
        register_generate(worker.celery, worker)
        queues = [names.generate_queue(spec.name, lane) for lane in names.LANES for spec in specs]
        rows = max(engine.model.rows for engine in worker.engines.values())
        worker.threads = settings.worker_threads or _threads(rows)
        intake = Intake()
        intake.add(lambda _: not drain.rests)
        BulkSlots(bulk_limit(worker.threads, rows)).attach(intake)
        intake.attach(app)
        consume(app, worker.name, queues, worker.threads)
    finally:
        metrics.close()
        announcement.close()
        stop_signals.close()
        drain.close()
        worker.close()
        identity.close()
        heartbeats.dispose()
        engine.dispose()


def _load(worker: WorkerProcess, specs: Sequence[ModelSpec]) -> None:
    """Warm before ready: a real image at every configured size, before the first job."""
    for spec in specs:
        engine = open_image_engine(
            spec, device=worker.settings.device, on_fault=worker.device_failed
        )
        with MODEL_LOAD_SECONDS.labels(spec.name, "load").time():
            engine.load()
        with MODEL_LOAD_SECONDS.labels(spec.name, "warm_up").time():
            report = engine.warm_up()
        worker.engines[spec.name] = engine
        log.info(
            "model_ready",
            model=spec.name,
            device=engine.model.device,
            rows=report.rows,
            seconds=round(report.seconds, 2),
        )


def _take_back(worker: WorkerProcess) -> None:
    """Jobs that a former life of this worker still holds run again at once."""
    with worker.database.begin() as session:
        jobs = session.scalars(statements.release_leases_of(worker.name)).all()
    for job in jobs:
        job_metrics.lost(job, WorkerLost.code)
        worker.progress.job_changed(job)
        if job.state == "queued":
            worker.publish(job)
    if jobs:
        log.warning("took_back_jobs", count=len(jobs))


def _threads(rows: int) -> int:
    """Twice the rows, so that every row is busy while other jobs are encoded and committed, and
    a reserve that bulk jobs cannot take (see `worker.bulk_slots`)."""
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

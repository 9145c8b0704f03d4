"""Start a CPU worker: the dispatcher, query embeddings, webhooks, housekeeping."""

from celery import signals

from shared.database import open_engine, session_factory
from shared.logging import get_logger
from shared.queue import names
from shared.queue.publish import celery_app
from shared.settings import Settings
from shared.storage import Storage
from worker.announce import Announcement, redis_client
from worker.app import consume
from worker.batch_files import BatchFiles
from worker.deliver import Deliverer
from worker.delivery_duties import DeliveryDuties
from worker.dispatcher import Dispatcher
from worker.duties import JobDuties
from worker.embed_query import EmbeddingModels, register_embed
from worker.feeder import BulkFeeder
from worker.identity import take_name
from worker.leftovers import Leftovers
from worker.reembed import EmbeddingKeeper
from worker.retention import Retention
from worker.tasks import register_deliver
from worker.webhook_hints import WebhookHints

log = get_logger(__name__)

_THREADS = 8


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
    register_embed(app, models, client)
    duties = [
        *JobDuties(settings, database, client, app).duties,
        *Retention(settings, database, storage).duties,
        *BatchFiles(database, storage).duties,
        *Leftovers(database, storage).duties,
        *DeliveryDuties(database, client, hints).duties,
    ]
    dispatcher = Dispatcher(settings, engine, duties)
    keeper = EmbeddingKeeper(settings, engine, database, models, lambda: dispatcher.leads)
    feeder = BulkFeeder(database, client, app, lambda: dispatcher.leads)
    announcement = Announcement(
        settings,
        client,
        lambda: identity.name,
        lambda: {
            "role": "cpu",
            "state": "ready",
            "device": "cpu",
            "models": [],
            "jobs": 0,
            "dispatches": dispatcher.leads,
        },
    )

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        log.info("worker_ready", worker=identity.name)
        models.load()  # takes seconds; the first query should not be the one to wait

    dispatcher.start()
    feeder.start()
    keeper.start()
    announcement.start()
    queues = [names.EMBED_QUEUE, names.WEBHOOK_QUEUE, names.MAINTENANCE_QUEUE]
    try:
        consume(app, identity.name, queues, _THREADS)
    finally:
        keeper.close()
        feeder.close()
        dispatcher.close()
        deliverer.close()
        announcement.close()
        identity.close()
        storage.close()
        engine.dispose()

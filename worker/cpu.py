"""Start a CPU worker: the dispatcher, query embeddings, webhooks, housekeeping."""

import redis
from celery import signals

from shared.database import open_engine, session_factory
from shared.logging import get_logger
from shared.queue import names
from shared.queue.publish import celery_app
from shared.settings import Settings
from worker.announce import Announcement
from worker.app import consume
from worker.dispatcher import Dispatcher
from worker.identity import take_name

log = get_logger(__name__)

_THREADS = 8


def run_cpu_worker(settings: Settings) -> None:
    """Serve everything that needs no GPU until told to stop."""
    engine = open_engine(settings, pool_size=_THREADS + 4)
    identity = take_name(engine, settings.worker_name, "cpu")
    client = redis.Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=5)
    app = celery_app(settings)
    dispatcher = Dispatcher(settings, engine, session_factory(engine), client, app)
    announcement = Announcement(
        settings,
        client,
        identity.name,
        lambda: {
            "role": "cpu",
            "state": "ready",
            "device": "cpu",
            "models": [],
            "jobs": 0,
            "dispatches": dispatcher.leads,
        },
    )
    dispatcher.on_round(announcement.renew)

    @signals.worker_ready.connect(weak=False)
    def ready(**_: object) -> None:
        announcement.renew()
        log.info("worker_ready", worker=identity.name)

    dispatcher.start()
    queues = [names.EMBED_QUEUE, names.WEBHOOK_QUEUE, names.MAINTENANCE_QUEUE]
    try:
        consume(app, identity.name, queues, _THREADS)
    finally:
        dispatcher.close()
        announcement.withdraw()
        identity.close()
        engine.dispose()

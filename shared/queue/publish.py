"""Put work into Redis: a Celery message that carries an id and nothing else that matters."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from celery import Celery

from shared.queue import names
from shared.settings import Settings
from shared.telemetry import message_headers


def celery_app(settings: Settings) -> Celery:
    """The Celery application, with the settings that the ledger's promises rest on."""
    app = Celery("darkroom", broker=settings.redis_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        # A message is acknowledged when its job has reached the ledger again, not before.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # Results are rows; nothing is kept in Redis.
        task_ignore_result=True,
        # On a Redis blip the running job goes on; cancelling it would only waste the GPU.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=settings.shutdown_grace.total_seconds(),
        # Only Flower reads them (docs/observability.md); each job makes four.
        worker_send_task_events=settings.task_events,
        task_send_sent_event=settings.task_events,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": int(settings.visibility_timeout.total_seconds()),
            "queue_order_strategy": "shared.queue.order:InteractiveFirst",
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # A submission must not hang on a dead Redis: the dispatcher publishes it later.
            "max_retries": 1,
            "interval_start": 0,
            "interval_max": 0.2,
        },
        task_create_missing_queues=True,
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
    )
    return app


def publish_job(app: Celery, job_id: UUID, model: str, lane: str, **headers: Any) -> None:
    """Hand a queued job to the workers of its model, with the request and trace it belongs to.

    Safe to repeat: a second message finds nothing to claim.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    app.send_task(
        names.GENERATE_TASK,
        args=[str(job_id)],
        # The message's own id is the job's, so that a queue can be compared with the ledger.
        task_id=str(job_id),
        queue=names.generate_queue(model, lane),
        headers=message_headers() | headers,
        retry=False,
        ignore_result=True,
    )


def publish_jobs(app: Celery, job_ids: Iterable[UUID], model: str, lane: str) -> None:
    """Hand many queued jobs to the workers of their model, in one round trip to Redis.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached; some may be there.
    """
    queue = names.generate_queue(model, lane)
    with app.producer_or_acquire() as producer, producer.batch():
        for job_id in job_ids:
            app.send_task(
                names.GENERATE_TASK,
                args=[str(job_id)],
                task_id=str(job_id),
                queue=queue,
                producer=producer,
                retry=False,
                ignore_result=True,
            )


def publish_deliveries(app: Celery, delivery_ids: Iterable[UUID]) -> None:
    """Hint to the CPU workers that these webhook deliveries are due.

    Safe to repeat and to leave out: the ledger knows what is due, and the dispatcher asks it.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    headers = message_headers()
    for delivery_id in delivery_ids:
        app.send_task(
            names.DELIVER_TASK,
            args=[str(delivery_id)],
            queue=names.WEBHOOK_QUEUE,
            headers=headers,
            retry=False,
            ignore_result=True,
        )


def publish_picture(
    app: Celery, model: str, picture_key: str, reply_key: str, seconds: float
) -> None:
    """Ask a CPU worker for the embedding of the picture at `picture_key`; see `publish_embedding`.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    app.send_task(
        names.EMBED_PICTURE_TASK,
        args=[model, picture_key, reply_key],
        queue=names.EMBED_QUEUE,
        expires=seconds,
        retry=False,
        ignore_result=True,
    )


def publish_embedding(app: Celery, model: str, text: str, reply_key: str, seconds: float) -> None:
    """Ask a CPU worker for a text's embedding; it pushes its answer to the list `reply_key`.

    After `seconds` nobody waits any more, and a worker that comes later drops the request.

    Raises:
        kombu.exceptions.OperationalError: Redis cannot be reached.
    """
    app.send_task(
        names.EMBED_TASK,
        args=[model, text, reply_key],
        queue=names.EMBED_QUEUE,
        expires=seconds,
        retry=False,
        ignore_result=True,
    )

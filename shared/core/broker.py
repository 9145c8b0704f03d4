"""Redis carries the work: every key and queue by name; publishing messages and events."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from celery import Celery
from kombu.exceptions import KombuError
from kombu.transport.redis import Channel, SentinelChannel, SentinelTransport, Transport
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.core.ids import encode_id
from shared.core.logging import get_logger
from shared.core.metrics import REDIS_UNREADABLE
from shared.core.redis_clients import broker
from shared.core.settings import Settings
from shared.core.telemetry import message_headers

REDIS_AWAY = (RedisError, KombuError, OSError)
"""What uses of Redis, by redis-py or by Celery, raise while it is away or refuses."""

GENERATE_TASK = "darkroom.generate"
EMBED_TASK = "darkroom.embed"
EMBED_IMAGE_TASK = "darkroom.embed_image"
DELIVER_TASK = "darkroom.deliver"
EMBED_QUEUE = "embed"
WEBHOOK_QUEUE = "webhooks"

UNACKED = "unacked"
"""kombu's hash of what workers have in flight: tag -> JSON of [message, exchange, routing key]."""

INTERACTIVE = "interactive"
BULK = "bulk"

QUEUE_CLASSES = (INTERACTIVE, BULK)
"""In the order in which a worker takes them."""


def generate_queue(model: str, queue_class: str) -> str:
    """The queue that workers of this model take jobs of this queue class from."""
    return f"generate.{model}.{queue_class}"


def events_key(job_id: UUID) -> str:
    """A job's event stream."""
    return f"darkroom:events:{encode_id('job', job_id)}"


def batch_key(batch_id: UUID) -> str:
    """A stream of one entry, which says that jobs of a batch have ended, or the batch itself."""
    return f"darkroom:batch:{encode_id('batch', batch_id)}"


def wake_key(process: str) -> str:
    """Read together with the events that an API process follows, to end that read."""
    return f"darkroom:wake:{process}"


def worker_key(name: str) -> str:
    """A live worker's heartbeat."""
    return f"darkroom:worker:{name}"


STOP_CHANNEL = "darkroom:stop"
"""Tells the worker that runs a job to look at the database now rather than at its next
heartbeat."""

WORKERS = "darkroom:workers"
"""The index of `worker_key`s."""

DRAIN_CHANNEL = "darkroom:drain"
"""Tells a worker to ask the database now whether it is to drain."""

NOTHING = "darkroom:nothing"
"""A list that nobody fills: a worker that may take nothing waits here before it polls again."""

ETA = "darkroom:eta"
"""What the leading dispatcher has measured; see `shared.jobs.estimates`."""


def loading_key(model: str) -> str:
    """Held by the worker that loads a model on demand, so that not all of them do."""
    return f"darkroom:loading:{model}"


def embedding_key(model: str, text_sha256: str) -> str:
    """A cached query embedding; 2: made of the parts that the model knows."""
    return f"darkroom:embedding:2:{model}:{text_sha256}"


def image_key(request: str) -> str:
    """Where an image lies that a CPU worker is asked to embed."""
    return f"darkroom:image:{request}"


def embedded_key(request: str) -> str:
    """Where the answer to one request to embed is waited for."""
    return f"darkroom:embedded:{request}"


RATE_LIMIT_PREFIX = "darkroom:limits"
"""Before the keys of `limits`, which counts requests per minute."""


# kombu keeps a consumer's queues in a set, so its own `priority` strategy has no order to keep;
# and sorted by name, bulk would come first.


class InteractiveFirst:
    """A kombu queue cycle (see `kombu.utils.scheduling`), named in the broker's settings."""

    def __init__(self, it: list[str] | None = None) -> None:
        self.items: list[str] = []
        self.update(it or ())

    def update(self, it: Iterable[str]) -> None:
        """Take a new set of queues; those known keep their turn."""
        queues = set(it)
        kept = [queue for queue in self.items if queue in queues]
        self.items = kept + sorted(queues.difference(kept))
        self._sort()

    def consume(self, n: int) -> list[str]:
        """The first n queues to look at; BRPOP takes from the first that has a message."""
        return self.items[:n]

    def rotate(self, last_used: str) -> None:
        """A queue that was served goes behind the others of its queue class."""
        if last_used in self.items:
            self.items.remove(last_used)
            self.items.append(last_used)
            self._sort()

    def _sort(self) -> None:
        # Stable: within a queue class the order is that of turns.
        self.items.sort(key=lambda queue: not queue.endswith(f".{INTERACTIVE}"))


# None: callers continue as if nothing had been there.

_log = get_logger(__name__)


def unreadable(what: str, error: Exception) -> None:
    """Count something that was dropped, by what it should have been."""
    REDIS_UNREADABLE.labels(what).inc()
    _log.warning("unreadable_in_redis", what=what, error=type(error).__name__)


def read_object(what: str, text: bytes | str) -> dict[str, Any] | None:
    """A JSON object."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise TypeError(type(value).__name__)
    except (ValueError, TypeError, RecursionError) as error:
        unreadable(what, error)
        return None
    return value


def read_id(what: str, value: object) -> UUID | None:
    """A row's id, in whatever has arrived in its place."""
    try:
        return UUID(value.decode() if isinstance(value, bytes) else str(value))
    except ValueError as error:
        unreadable(what, error)
        return None


def job_of(message: bytes | str, *, in_flight: bool = False) -> UUID | None:
    """The job that a queued Celery message is about: its task id.

    Not counted: the same messages are read again and again, and dropped by their consumer.
    """
    try:
        value = json.loads(message)
        return UUID((value[0] if in_flight else value)["headers"]["id"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


class _KnowsItsEnd:
    """Of a channel: that its connection is closed is told as the loss of one.

    After a loss kombu gives back what is unacknowledged over a connection that it has closed
    already. Its AttributeError would end the worker.
    """

    connection: Any

    def _connparams(self, *given: Any, **named: Any) -> Any:
        if self.connection.client is None:
            raise RedisConnectionError("the connection is closed")
        return super()._connparams(*given, **named)  # type: ignore[misc]


class BrokerChannel(_KnowsItsEnd, Channel):
    """Kombu's channel to one Redis."""


class SentinelBrokerChannel(_KnowsItsEnd, SentinelChannel):
    """Kombu's channel to the Redis that Sentinels name."""


Transport.Channel = BrokerChannel
SentinelTransport.Channel = SentinelBrokerChannel


def celery_app(settings: Settings) -> Celery:
    """The Celery application, with the settings that the database's guarantees need."""
    url, of_transport = broker(settings)
    app = Celery("darkroom", broker=url, set_as_current=False)
    app.conf.update(
        # A message is acknowledged when its job has reached the database again, not before.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # Results are rows; nothing is kept in Redis.
        task_ignore_result=True,
        # On a Redis blip the running job continues; canceling it would only waste the GPU.
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
            "queue_order_strategy": "shared.core.broker:InteractiveFirst",
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # A submission must not hang on a dead Redis: the dispatcher publishes it later.
            "max_retries": 1,
            "interval_start": 0,
            "interval_max": 0.2,
            **of_transport,
        },
        task_create_missing_queues=True,
        task_serializer="json",
        accept_content=["json"],
        timezone="UTC",
    )
    return app


def _send(app: Celery, task: str, queue: str, *args: object, **options: Any) -> None:
    app.send_task(task, args=list(args), queue=queue, retry=False, ignore_result=True, **options)


# Each of these raises `REDIS_AWAY` when Redis cannot be reached, and is safe to repeat.


def publish_job(app: Celery, job_id: UUID, model: str, queue_class: str) -> None:
    """Hand a queued job to the workers of its model, with the request and trace it belongs to.

    A second message finds nothing to claim. The message's own id is the job's, so that a queue can
    be compared with the database.
    """
    job, queue, headers = job_message(job_id, model, queue_class)
    _send(app, GENERATE_TASK, queue, job, task_id=job, headers=headers)


class JobMessage(NamedTuple):
    """A message that hands a queued job to the workers of its model."""

    job: str
    queue: str
    headers: dict[str, Any]


def job_message(job_id: UUID, model: str, queue_class: str) -> JobMessage:
    """As `publish_job` sends it, with the request and trace that this code runs for."""
    return JobMessage(str(job_id), generate_queue(model, queue_class), message_headers())


def publish_jobs(app: Celery, messages: Iterable[JobMessage]) -> None:
    """Send many in one round trip to Redis; when it fails, some may be there."""
    with app.producer_or_acquire() as producer, producer.batch():
        for job, queue, headers in messages:
            # Celery would go to some lengths to describe them for Flower.
            described = {"argsrepr": f"['{job}']", "kwargsrepr": "{}"}
            sent = {"task_id": job, "headers": headers, "producer": producer, **described}
            _send(app, GENERATE_TASK, queue, job, **sent)


def publish_deliveries(app: Celery, delivery_ids: Iterable[UUID]) -> None:
    """Notify the CPU workers that these webhook deliveries are due. Safe to leave out, too: the
    dispatcher asks the database what is due."""
    ids = [str(delivery_id) for delivery_id in delivery_ids]
    if not ids:
        return
    headers = message_headers()
    with app.producer_or_acquire() as producer, producer.batch():
        for delivery in ids:
            _send(app, DELIVER_TASK, WEBHOOK_QUEUE, delivery, headers=headers, producer=producer)


def publish_embedding(
    app: Celery, task: str, model: str, subject: str, *, reply_key: str, seconds: float
) -> None:
    """Ask a CPU worker to embed; it pushes its answer to the list `reply_key`.

    After `seconds` nobody waits any more, and a worker that comes later drops the request.

    Args:
        app: for the connection.
        task: `EMBED_TASK`, whose subject is a text, or `EMBED_IMAGE_TASK`: an `image_key`.
        model: which embeds it.
        subject: what to embed.
        reply_key: an `embedded_key`.
        seconds: that the answer may take.
    """
    _send(app, task, EMBED_QUEUE, model, subject, reply_key, expires=seconds)


# Fields of an entry: ``type`` (``job`` | ``progress`` | ``preview`` | ``image``; ``end`` in a
# batch's stream) and ``data`` (JSON). The stream is a convenience; the database is the truth, and a
# reader that finds no stream falls back to it. Entry ids are Redis's own, so a reader that gives
# back the last one goes on after it.

MAX_ENTRIES = 600
"""About 150 s of progress at 4 a second, half with previews; older entries only repeat what newer
ones say."""

TTL_SECONDS = 3600
"""After its last event a stream is kept for late readers, then Redis drops it."""


class _Pipeline(Protocol):
    def xadd(self, name: str, fields: Any, *, maxlen: int, approximate: bool) -> Any: ...
    def expire(self, name: str, time: int) -> Any: ...


def append_event(pipeline: _Pipeline, job_id: UUID, kind: str, data: dict[str, Any]) -> None:
    """Queue one event on a redis-py pipeline, sync or async; the caller executes it."""
    key = events_key(job_id)
    entry = {"type": kind, "data": json.dumps(data, separators=(",", ":"))}
    pipeline.xadd(key, entry, maxlen=MAX_ENTRIES, approximate=True)
    pipeline.expire(key, TTL_SECONDS)


def append_end(pipeline: _Pipeline, batch_id: UUID) -> None:
    """Queue the news that jobs of a batch have ended, or the batch; followers then look."""
    pipeline.xadd(batch_key(batch_id), {"type": "end", "data": "{}"}, maxlen=1, approximate=False)
    pipeline.expire(batch_key(batch_id), TTL_SECONDS)

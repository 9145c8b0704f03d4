"""Celery's worker inside this process, kept alive whatever Redis does or holds.

Redis is not the truth. A message that can be neither acknowledged nor given back does no harm:
it is delivered again some day, and finds nothing to claim. One that cannot be read is dropped and
counted. And a Redis that answers with a refusal (READONLY after a failover, MISCONF on a full
disk, OOM) is away like one that does not answer: kombu and Celery 5.7 tell the two apart, and stop
the worker, warmed models and all, for a refusal.
"""

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Empty
from typing import Any

from celery import Celery, Task, signals
from celery.apps import worker as celery_worker
from celery.platforms import SecurityWarning
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.transport import virtual
from kombu.transport.redis import QoS, SentinelTransport, Transport
from redis.exceptions import RedisError

from shared.core.broker import BrokerChannel, SentinelBrokerChannel, unreadable
from shared.core.logging import get_logger

log = get_logger(__name__)

_PAUSE_SECONDS = 1.0
"""Between two attempts at a Redis that can be reached and refuses."""


class ResilientConsumer(Consumer):  # type: ignore[misc]
    """Tries a Redis that refuses again once a second."""

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """As Celery's, which leaves no pause where the connection itself stands."""
        super().on_connection_error_before_connected(exc)
        threading.Event().wait(_PAUSE_SECONDS)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """As Celery's, and counted."""
        unreadable("message", exc)
        super().on_decode_error(message, exc)


class ResilientRequest(Request):  # type: ignore[misc]
    """A request whose acknowledgement may fail for whatever reason; it is logged.

    Celery's thread pool hears no error of these callbacks: the slot would be taken for ever.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connection_errors = (Exception,)

    def on_accepted(self, *args: Any, **options: Any) -> None:
        """A thread takes it; an error in Celery's statistics must not fail it."""
        try:
            super().on_accepted(*args, **options)
        except Exception as error:
            unreadable("message", error)

    def on_failure(self, *args: Any, **options: Any) -> Any:
        """As Celery's, and the slot is free whatever comes of it."""
        try:
            return super().on_failure(*args, **options)
        except Exception as error:
            log.warning("failure_not_handled", error=type(error).__name__)
            return self.acknowledge()


class ResilientQoS(QoS):
    """Counts what is in flight by itself: no answer of Redis can keep a slot taken."""

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a received message. A full Redis has given it out and cannot note to whom."""
        try:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            log.warning("message_not_noted", error=type(error).__name__)
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: Any) -> None:
        """Free the slot, whether or not Redis can delete the message now."""
        self._free(delivery_tag, self._drop)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Free the slot, whether or not Redis can take the message back now."""
        back = partial(self.restore_by_tag, leftmost=True)
        self._free(delivery_tag, back if requeue else self._drop)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """As kombu's; an invalid entry of the hash is removed."""
        try:
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]
        except (RedisError, OSError):
            raise
        except Exception as error:
            unreadable("message", error)
            self._drop(tag)

    def restore_unacked_once(self, *args: Any, **options: Any) -> None:
        """As kombu's, but it never raises.

        When Redis goes away while jobs are in flight, their messages have no owner, and kombu's
        collected connection raises an AttributeError.
        """
        try:
            super().restore_unacked_once(*args, **options)  # type: ignore[no-untyped-call]
        except Exception as error:
            log.warning("messages_not_given_back", error=type(error).__name__)

    def _free(self, delivery_tag: Any, tell_redis: Callable[[Any], None]) -> None:
        try:
            tell_redis(delivery_tag)
        except Exception as error:
            log.warning("message_not_settled", error=type(error).__name__)
        finally:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]

    def _drop(self, delivery_tag: Any) -> None:
        """Without MULTI, in which a full Redis refuses even what gives memory back.

        In this order: kombu clears up an entry of the index without a message, not the reverse.
        """
        with (
            self.channel.conn_or_acquire() as client,
            client.pipeline(transaction=False) as pipeline,
        ):
            pipeline.hdel(self.unacked_key, delivery_tag)
            pipeline.zrem(self.unacked_index_key, delivery_tag)
            pipeline.execute()


class ResilientChannel(BrokerChannel):
    """Reads messages, and drops what is not one."""

    QoS = ResilientQoS

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        """As kombu's, but one client serves all commands that do not block, of every thread.

        kombu makes one for each of them, which takes longer than the command.
        """
        if asynchronous:
            return super()._create_client(asynchronous)  # type: ignore[no-untyped-call]
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return kept

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Callable[[Any], Any], *args: Any, **options: Any
    ) -> Any:
        """As kombu's; what the consumer cannot make sense of is dropped, and holds no slot."""

        def receive(message: Any) -> Any:
            try:
                return callback(message)
            except Exception as error:
                unreadable("message", error)
                if not no_ack:
                    self.basic_ack(message.delivery_tag)  # type: ignore[no-untyped-call]
                return None

        return super().basic_consume(queue, no_ack, receive, *args, **options)  # type: ignore[no-untyped-call]

    def _brpop_read(self, **options: Any) -> Any:
        with _dropping_the_unreadable():
            super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        return True

    def _receive(self) -> Any:
        with _dropping_the_unreadable():
            super()._receive()  # type: ignore[no-untyped-call]
        return True


class ResilientSentinelChannel(ResilientChannel, SentinelBrokerChannel):
    """The same, where Sentinels name the Redis."""


@contextmanager
def _dropping_the_unreadable() -> Iterator[None]:
    try:
        yield
    except (Empty, RedisError, OSError):
        raise
    except Exception as error:
        unreadable("message", error)


@signals.task_rejected.connect
@signals.task_unknown.connect
def _count(exc: Exception | None = None, **_: Any) -> None:
    """Celery has dropped a message: invalid, of an unknown task, or with wrong arguments."""
    unreadable("message", exc or ValueError())


def harden(app: Celery) -> None:
    """Let this process's consumers outlive a Redis that is lost, refuses or holds nonsense."""
    app.conf.worker_consumer = f"{__name__}:{ResilientConsumer.__name__}"
    app.Task.Request = f"{__name__}:{ResilientRequest.__name__}"
    Transport.Channel = ResilientChannel
    SentinelTransport.Channel = ResilientSentinelChannel
    Transport.connection_errors = (*Transport.connection_errors, RedisError)


_say = celery_worker.safe_say


def consume(app: Celery, name: str, queues: Sequence[str], threads: int) -> None:
    """Take messages from these queues, in this order, until SIGTERM or SIGINT.

    Blocks. On a signal no more is taken; the call returns when the tasks in flight have ended.
    """
    harden(app)
    celery_worker.safe_say = _say_no_farewell
    # Ctrl-C reaches the whole process group; Celery must treat it like SIGTERM, once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Celery warns root because of pickled messages; this broker carries JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    app.worker_main(
        [
            "--quiet",
            "worker",
            "--pool=threads",
            f"--concurrency={threads}",
            f"--queues={','.join(queues)}",
            f"--hostname={name}@%h",
            "--without-gossip",
            "--without-mingle",
        ]
    )


def _say_no_farewell(message: str, stream: Any = sys.__stderr__) -> None:
    """Celery announces its end on stdout, where a reader of logs expects events; what it writes to
    stderr (its threads' stacks, at SIGUSR1) somebody has asked for."""
    if stream is not sys.__stdout__:
        _say(message, stream)


@signals.setup_logging.connect
def _keep_our_logging(**_: object) -> None:
    """Being connected is enough: Celery then leaves the logging as it is."""


def header_of(task: Task, name: str) -> str | None:
    """A header of the message that a task was called by."""
    value = task.request.get(name)
    return value if isinstance(value, str) else None

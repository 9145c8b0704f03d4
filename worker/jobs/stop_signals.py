"""Hear at once that a job in hand was canceled, instead of at the next heartbeat."""

import threading

import redis

from shared.logging import get_logger
from shared.queue.names import STOP_CHANNEL
from shared.queue.reading import read_id
from worker.jobs.leases import LeaseKeeper

log = get_logger(__name__)

_POLL_SECONDS = 0.5


class StopSignals:
    """Listens on the stop channel. What it misses while Redis is away, the heartbeat finds."""

    def __init__(self, client: "redis.Redis", leases: LeaseKeeper) -> None:
        self._redis = client
        self._leases = leases
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stop-signals", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _POLL_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                log.warning("stop_channel_lost", error=type(error).__name__)
                self._closing.wait(_POLL_SECONDS)

    def _listen(self) -> None:
        with self._redis.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        ) as pubsub:
            pubsub.subscribe(STOP_CHANNEL)
            while not self._closing.is_set():
                message = pubsub.get_message(timeout=_POLL_SECONDS)
                job_id = message and read_id("stop_signal", message["data"])
                if job_id:
                    self._leases.look_now(job_id)

"""Deliver webhooks: claim a delivery → send it → record what came of it → take the next.

A message on the `webhooks` queue only says that something is due for its destination. It is
followed on one of many threads of this module's own, because a receiver may take its time and
Celery's threads have other work to do. Tenants share the threads (`FairSlots`); a message that
finds none for its tenant is dropped, and the dispatcher repeats it.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.core import telemetry
from shared.core.ids import encode_id
from shared.core.logging import get_logger
from shared.core.metrics import show_zeros
from shared.core.outbound.client import GuardedClient
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images.models import Image
from shared.images.queries import list_images_of_jobs
from shared.jobs.queries.lookups import find_traceparent
from shared.webhooks import delivery_queries, queries
from shared.webhooks.message import SigningKey, new_secret, webhook_policy
from shared.webhooks.models import SENT_ONCE, EventType, WebhookDelivery
from worker.core.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS
from worker.webhooks.attempt import (
    CODES,
    AttemptResult,
    AttemptSuperseded,
    Claimed,
    Verdict,
    attempt,
    record,
)
from worker.webhooks.progress import WebhookNotifier

log = get_logger(__name__)

THREADS = 64
"""Requests at once in one process. Each waits for a receiver, up to 15 s when that hangs."""
_LOOKUPS = 8
"""Further threads, which find out whose deliveries are."""
_LEASE_MARGIN = timedelta(seconds=15)
"""Beyond the request's own limit, for recording it on a slow day."""
_LATE = timedelta(seconds=10)
"""Progress that old is not worth sending."""
_CLOSING_SECONDS = 2.0


class FairSlots:
    """Shares slots among owners: none may hold more than are free.

    So one owner takes half of them, two a third each, and one is always left for whoever comes
    next, whatever the others wait for (Choudhury and Hahne, "Dynamic queue length thresholds",
    1998).
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._held: Counter[UUID] = Counter()
        self._refused: set[UUID] = set()
        self._is_crowded = False
        self._lock = threading.Lock()

    def take(self, owner: UUID) -> bool:
        """Whether the owner may have a slot now."""
        with self._lock:
            if self._held[owner] >= self._free:
                self._refused.add(owner)
                self._is_crowded = self._is_crowded or self._free == 0
                return False
            self._held[owner] += 1
            self._free -= 1
            return True

    def may_keep(self, owner: UUID) -> bool:
        """Whether a slot's holder may continue; it gives way once to whoever was refused."""
        with self._lock:
            if self._is_crowded or owner in self._refused:
                self._is_crowded = False
                self._refused.discard(owner)
                return False
            return True

    def release(self, owner: UUID) -> None:
        with self._lock:
            self._free += 1
            self._held -= Counter([owner])


class Deliverer:
    """Follows messages, each on a thread, within the limits of destinations and of this process."""

    def __init__(
        self,
        settings: Settings,
        database: sessionmaker[Session],
        storage: Storage,
        notifier: WebhookNotifier,
    ) -> None:
        for verdict, codes in CODES.items():
            show_zeros(WEBHOOK_ATTEMPTS, [verdict.name.lower()], codes)
            show_zeros(WEBHOOK_SECONDS, [verdict.name.lower()])
        self._settings = settings
        self._database = database
        self._storage = storage
        self._notifier = notifier
        self._client = GuardedClient(webhook_policy(settings))
        self._lease = settings.webhook_timeout + _LEASE_MARGIN
        self._free = threading.BoundedSemaphore(THREADS + _LOOKUPS)
        self._slots = FairSlots(THREADS)
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()

    @property
    def is_idle(self) -> bool:
        return not self._threads

    def offer(self, delivery_id: UUID, traceparent: str | None = None) -> bool:
        """Follow a message, and return at once; False: no thread is free, and it was dropped.

        `traceparent` is the trace of what has led to the delivery, if the message says so.
        """
        if self._closing.is_set() or not self._free.acquire(blocking=False):
            return False
        # A daemon: a receiver that hangs must not keep the process from ending.
        thread = threading.Thread(
            target=self._follow, args=(delivery_id, traceparent), name="deliver", daemon=True
        )
        self._threads.add(thread)
        thread.start()
        return True

    def close(self) -> None:
        """Take nothing more. What is under way may end, or its lease runs out and another sends."""
        self._closing.set()
        deadline = time.monotonic() + _CLOSING_SECONDS
        for _ in range(THREADS + _LOOKUPS):
            if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return

    def _follow(self, delivery_id: UUID, traceparent: str | None) -> None:
        try:
            self._deliver(delivery_id, traceparent)
        except SQLAlchemyError as error:
            # The lease runs out, and the dispatcher offers the delivery again.
            log.warning("delivery_lost_postgres", error=type(error).__name__)
        except Exception:
            log.exception("delivery_crashed", delivery_id=encode_id("whd", delivery_id))
        finally:
            self._threads.discard(threading.current_thread())
            self._free.release()

    def _deliver(self, delivery_id: UUID, traceparent: str | None) -> None:
        """What waits for the delivery's destination, oldest first, while its tenant has a slot."""
        with self._database.begin() as session:
            first = session.execute(delivery_queries.get_destination(delivery_id)).one_or_none()
        if first is None or not self._slots.take(first.tenant_id):
            return
        try:
            while claimed := self._claim_next(first.destination):
                # The message's trace is that of its own delivery.
                own = traceparent if claimed.delivery.id == delivery_id else None
                with self._observed(claimed, own):
                    self._handle(claimed)
                if self._closing.is_set() or not self._slots.may_keep(first.tenant_id):
                    return
        finally:
            self._slots.release(first.tenant_id)

    def _claim_next(self, destination: str) -> Claimed | None:
        with self._database.begin() as session:
            session.execute(delivery_queries.lock_destination(destination))
            delivery = session.scalar(delivery_queries.claim_next(destination, self._lease))
            return None if delivery is None else self._load(session, delivery)

    def _load(self, session: Session, delivery: WebhookDelivery) -> Claimed:
        """What the request is made of, read with the claim."""
        event, endpoint, now = session.execute(delivery_queries.get_receiver(delivery)).one()
        owner = delivery.tenant_id, delivery.endpoint_id
        if endpoint is None:  # The tenant's own secret is made when it is first needed.
            session.execute(queries.ensure_secret(*owner, "v1", new_secret()))
        secrets = session.scalars(queries.list_secrets(*owner)).all()
        images: Sequence[Image] = ()
        if event.type == EventType.JOB_SUCCEEDED:
            images = session.scalars(list_images_of_jobs([event.resource_id])).all()
        keys = [SigningKey(secret.scheme, secret.secret) for secret in secrets]
        return Claimed(delivery, event, endpoint, keys, images, now)

    def _handle(self, claimed: Claimed) -> None:
        delivery = claimed.delivery
        if _is_moot(claimed):
            with self._database.begin() as session:
                session.execute(delivery_queries.fail(delivery.id, delivery.attempts))
            return
        result = self._attempt(claimed)
        log.info(
            "webhook_attempt",
            attempt=delivery.attempts,
            event_type=delivery.event_type,
            verdict=result.verdict.name.lower(),
            status=result.status,
            error=result.error_code,
            ms=result.latency_ms,
        )
        try:
            with self._database.begin() as session:
                notified = record(session, claimed, result, self._settings.webhook_longest_hold)
        except AttemptSuperseded:
            log.warning("webhook_attempt_superseded")
            return
        self._notifier.publish(notified)

    @contextmanager
    def _observed(self, claimed: Claimed, traceparent: str | None) -> Iterator[None]:
        """The delivery's log lines carry its ids; it is a span of its job's trace."""
        delivery = claimed.delivery
        ids = {"delivery_id": encode_id("whd", delivery.id), "tenant_id": str(delivery.tenant_id)}
        if telemetry.is_tracing() and traceparent is None:
            with self._database.begin() as session:
                traceparent = session.scalar(find_traceparent(delivery.resource_id))
        attributes = {f"darkroom.{name}": value for name, value in ids.items()}
        with (
            structlog.contextvars.bound_contextvars(**ids),
            telemetry.span(
                "deliver webhook", "consumer", parent=traceparent, attributes=attributes
            ),
        ):
            yield

    def _attempt(self, claimed: Claimed) -> AttemptResult:
        settings = self._settings
        started = time.monotonic()
        try:
            result = attempt(
                claimed, self._client, self._storage, settings.public_url, settings.webhook_timeout
            )
        except Exception as error:
            # It must count as a failure, or it would be tried for ever.
            log.exception("webhook_attempt_crashed")
            result = AttemptResult(
                Verdict.TRY_AGAIN,
                error_code="internal_error",
                error_message=f"Darkroom could not make the request ({type(error).__name__}).",
            )
        seconds = time.monotonic() - started
        verdict = result.verdict.name.lower()
        WEBHOOK_ATTEMPTS.labels(verdict, result.error_code or "none").inc()
        WEBHOOK_SECONDS.labels(verdict).observe(seconds)
        return replace(result, latency_ms=round(seconds * 1000, 1))


def _is_moot(claimed: Claimed) -> bool:
    """Whether there is no request to make: the endpoint was switched off, or progress is late."""
    event, endpoint = claimed.event, claimed.endpoint
    if event.type in SENT_ONCE and claimed.started_at - event.created_at > _LATE:
        return True
    is_off = endpoint is not None and not endpoint.enabled
    return is_off and event.type != EventType.ENDPOINT_TEST

"""What the dispatcher does for webhooks each round: offer what is due, forget what is old."""

from datetime import timedelta

import redis
from sqlalchemy.orm import Session, sessionmaker

from shared.queue import names
from shared.webhooks import claims
from worker.dispatch.dispatcher import Duty
from worker.webhooks.hints import WebhookHints

LOG_KEPT = timedelta(days=30)
"""How long events, deliveries and attempts can be looked at."""
_OFFERED_AT_ONCE = 200
_FORGOTTEN_AT_ONCE = 5_000
_FORGET_EVERY = timedelta(minutes=10)


class DeliveryDuties:
    """Safe to repeat and to skip: a hint given twice finds nothing to claim the second time."""

    def __init__(
        self, database: sessionmaker[Session], client: "redis.Redis", hints: WebhookHints
    ) -> None:
        self._database = database
        self._redis = client
        self._hints = hints

    @property
    def duties(self) -> list[Duty]:
        """For the dispatcher."""
        return [
            Duty("offer_deliveries", self.offer_due),
            Duty("forget_deliveries", self.forget_old, every=_FORGET_EVERY),
        ]

    def offer_due(self) -> int:
        """Publish hints for what is due: first attempts whose hint was lost, and all later ones."""
        waiting = int(self._redis.llen(names.WEBHOOK_QUEUE))
        if waiting >= _OFFERED_AT_ONCE:
            return 0  # The workers are behind; more hints would not make them faster.
        with self._database.begin() as session:
            due = session.scalars(claims.list_due(_OFFERED_AT_ONCE)).all()
        self._hints.publish(due)
        return len(due)

    def forget_old(self) -> None:
        """Apply the retention of the delivery log."""
        with self._database.begin() as session:
            session.execute(claims.forget(LOG_KEPT, _FORGOTTEN_AT_ONCE))
            session.execute(claims.forget_holds())

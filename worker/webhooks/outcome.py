"""Put a webhook attempt on record: what becomes of the delivery, the endpoint, and who is told."""

import random
from datetime import timedelta
from uuid import UUID

from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TypedReturnsRows

from shared.webhooks import claims, outbox, schedule
from shared.webhooks.events import SENT_ONCE, EventType
from shared.webhooks.models import WebhookEndpoint
from worker.webhooks.attempt import Claimed, Outcome, Verdict

FAILING_FOR = timedelta(days=5)
"""An endpoint that has failed for so long is switched off."""


class AttemptSuperseded(Exception):
    """The lease ran out meanwhile, and the delivery is in other hands."""


def record(
    session: Session, claimed: Claimed, outcome: Outcome, longest_hold: timedelta
) -> list[UUID]:
    """Write what came of an attempt; the ids of deliveries that this leads to.

    A receiver's `Retry-After` counts up to `longest_hold`.

    Raises:
        AttemptSuperseded: nothing was written.
    """
    delivery = claimed.delivery
    was_well = claimed.endpoint is None or claimed.endpoint.failing_since is None
    if outcome.verdict is not Verdict.DELIVERED or not was_well:
        # What follows may change other rows too; who does that has the lock before any row.
        session.execute(claims.lock_destination(delivery.destination))
    hold = None if outcome.retry_after is None else min(outcome.retry_after, longest_hold)
    if session.scalar(_transition(claimed, outcome, hold)) is None:
        raise AttemptSuperseded
    session.execute(
        claims.insert_attempt(
            {
                "delivery_id": delivery.id,
                "number": delivery.attempts,
                "tenant_id": delivery.tenant_id,
                "started_at": claimed.started_at,
                "latency_ms": outcome.latency_ms,
                "status": outcome.status,
                "error_code": outcome.error_code,
                "error_message": outcome.error_message,
                "response": outcome.response,
            }
        )
    )
    if hold is not None:
        session.execute(claims.hold(delivery.id, claimed.url, hold))
    if claimed.endpoint is None:
        return []
    return _note_health(session, claimed.endpoint, claimed, outcome)


def _transition(
    claimed: Claimed, outcome: Outcome, hold: timedelta | None
) -> TypedReturnsRows[UUID]:
    delivery = claimed.delivery
    held = delivery.id, delivery.attempts
    if outcome.verdict is Verdict.DELIVERED:
        return claims.succeed(*held)
    if outcome.verdict is Verdict.TRY_AGAIN and delivery.event_type not in SENT_ONCE:
        jitter = random.uniform(-1, 1)
        gap = schedule.next_gap(delivery.failures + 1, jitter)
        if gap is not None:
            is_within = hold is not None and gap <= hold
            return claims.try_again(*held, None if is_within else gap)
    return claims.fail(*held)


def _note_health(
    session: Session, endpoint: WebhookEndpoint, claimed: Claimed, outcome: Outcome
) -> list[UUID]:
    if outcome.verdict is Verdict.DELIVERED:
        if endpoint.failing_since is not None:
            session.execute(claims.mark_well(endpoint.id))
        return []
    if claimed.event.type == EventType.ENDPOINT_TEST and outcome.verdict is not Verdict.GONE:
        return []  # Somebody is trying things out.
    session.execute(claims.mark_failing(endpoint.id))
    if outcome.verdict is Verdict.GONE:
        switched_off = session.scalar(claims.disable(endpoint.id, "gone"))
    else:
        switched_off = session.scalar(claims.disable(endpoint.id, "failing", FAILING_FOR))
    if switched_off is None:
        return []
    session.execute(claims.give_up(endpoint.id))
    data = {"url": switched_off.url, "reason": switched_off.disabled_reason}
    told = outbox.emit(
        endpoint.tenant_id,
        EventType.ENDPOINT_DISABLED,
        endpoint.id,
        data,
        receivers=outbox.OTHERS,
    )
    return session.scalar(told) or []

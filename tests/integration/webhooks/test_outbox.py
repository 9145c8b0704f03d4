"""No end of a job without its deliveries: state, event and deliveries are one transaction."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from deploy.tenants import create_key
from shared.core.broker import WEBHOOK_QUEUE
from shared.core.ids import decode_id, new_id
from shared.jobs.models import Job
from shared.jobs.queries import claims, client_requests, endings, periodic
from shared.webhooks import delivery_queries, outbox, queries
from shared.webhooks.delivery_queries import AT_ONCE
from shared.webhooks.models import EventType, WebhookDelivery, WebhookEvent
from tests.conftest import EVERY_SCOPE
from tests.integration.webhooks.conftest import Alone, Hooks
from tests.jobs import as_one
from tests.processes import ApiProcess, WorkerProcess, free_port, wait_until
from tests.receiver import Receiver, answer

URL = "https://receiver.invalid/hooks"
"""Nobody answers there; no worker is needed to see what is written."""


def own() -> dict[str, Any]:
    """A webhook to a host of its own: workers are not told of many more where others wait."""
    host = f"https://{new_id()}.invalid"
    events = ["job.canceled", "job.failed", "job.succeeded", "job.expired", "job.started"]
    return {"url": f"{host}/", "events": events, "origin": f"{host}:443"}


LEASE = timedelta(seconds=30)
PENDING = WebhookDelivery.state == "pending"
Transition = Callable[[Session, Job], Any]


def run_and(end: Callable[[Job], Any]) -> Transition:
    """Claim the job, then end the attempt."""

    def transition(session: Session, job: Job) -> Any:
        claimed = session.scalars(*claims.claim(job.id, "w", "cpu", LEASE)).one()
        return session.scalars(end(claimed)).all()

    return transition


def overdue(session: Session, job: Job) -> Any:
    """Claim it twice and let the lease run out each time."""
    for poison in (False, True):
        claim = claims.claim(job.id, "w", "cpu", LEASE, poison=poison)
        session.scalars(*claim).one()
        session.connection().exec_driver_sql(
            "UPDATE jobs SET lease_until = '2020-01-01' WHERE id = %s", (job.id,)
        )
        changed = session.scalars(periodic.expire_leases(100, LEASE)).all()
    return changed


def too_late(session: Session, job: Job) -> Any:
    """Let the start deadline pass; a job on record with it would be the dispatcher's."""
    session.connection().exec_driver_sql(
        "UPDATE jobs SET start_deadline = '2020-01-01' WHERE id = %s", (job.id,)
    )
    return session.scalars(periodic.expire_queued(100)).all()


def late(session: Session, job: Job) -> Any:
    """Let the finish deadline pass while it runs."""
    session.scalars(*claims.claim(job.id, "w", "cpu", LEASE)).one()
    session.connection().exec_driver_sql(
        "UPDATE jobs SET finish_deadline = '2020-01-01' WHERE id = %s", (job.id,)
    )
    return session.scalars(periodic.expire_unfinished(100, LEASE)).all()


TRANSITIONS: dict[str, tuple[dict[str, Any], Transition, str]] = {
    "succeed": ({}, run_and(lambda j: as_one(endings.succeed(j.id, 1, 0.5))), "job.succeeded"),
    "fail": ({}, run_and(lambda j: endings.fail(j.id, 1, "nan_output", "x")), "job.failed"),
    "attempts used up": (
        {},
        run_and(lambda j: endings.fail_or_retry(j.id, 1, "out_of_memory", "x", LEASE)),
        "job.failed",
    ),
    "lost for good": ({"max_attempts": 9}, overdue, "job.failed"),
    "cancel while queued": (
        {},
        lambda s, j: s.scalars(client_requests.cancel(j.tenant_id, j.id)).all(),
        "job.canceled",
    ),
    "cancel while running": (
        {},
        run_and(lambda j: endings.cancel_running(j.id, 1)),
        "job.canceled",
    ),
    "start too late": ({}, too_late, "job.expired"),
    "finish too late": ({}, late, "job.expired"),
    "stopped by its worker": (
        {},
        run_and(lambda j: endings.expire_running(j.id, 1)),
        "job.expired",
    ),
}


def written(session: Session, job: Job) -> list[tuple[str, bool]]:
    """(event, whether to an endpoint) of each delivery of a job."""
    rows = session.execute(
        select(WebhookDelivery.event_type, WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.resource_id == job.id)
        .order_by(WebhookDelivery.id)
    )
    return [(kind, endpoint is not None) for kind, endpoint in rows]


@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_way_to_end_writes_its_deliveries(hooks: Hooks, name: str) -> None:
    fields, transition, event = TRANSITIONS[name]
    hooks.register(URL)
    job = hooks.queue(webhook=own(), **fields)
    with hooks.database.begin() as session:
        changed = [row for row in transition(session, job) if row.id == job.id]
        told = [kind for kind in written(session, job) if kind[0] != "job.started"]
    assert sorted(told) == [(event, False), (event, True)]
    assert len(changed[0].webhook_deliveries) == 2


@pytest.mark.parametrize("name", TRANSITIONS)
def test_what_is_rolled_back_tells_nobody(hooks: Hooks, name: str) -> None:
    fields, transition, _ = TRANSITIONS[name]
    hooks.register(URL)
    job = hooks.queue(webhook=own(), **fields)
    with hooks.database() as session:
        transition(session, job)
        session.rollback()
    with hooks.database.begin() as session:
        assert written(session, job) == []
        assert session.get_one(Job, job.id).state == "queued"


def test_what_goes_back_to_the_queue_is_no_event(hooks: Hooks) -> None:
    job = hooks.queue(webhook=own(), max_attempts=3)
    with hooks.database.begin() as session:
        session.scalars(*claims.claim(job.id, "w", "cpu", LEASE)).one()
        [back] = session.scalars(
            endings.fail_or_retry(job.id, 1, "out_of_memory", "x", timedelta(0))
        ).all()
        assert (back.state, back.webhook_deliveries) == ("queued", None)
        [again] = session.scalars(*claims.claim(job.id, "w", "cpu", LEASE)).all()
        assert len(again.webhook_deliveries or ()) == 1
        asked = session.scalars(client_requests.cancel(job.tenant_id, job.id)).one()
        assert (asked.state, asked.webhook_deliveries) == ("running", None)
        assert written(session, job) == [("job.started", False)] * 2


def test_only_those_who_asked_are_told(hooks: Hooks) -> None:
    hooks.register(URL, events=["job.failed"])
    off = hooks.register(URL, events=["job.canceled"], enabled=False)
    asked = hooks.register(URL, events=["job.canceled", "batch.completed"])
    job = hooks.queue()
    with hooks.database.begin() as session:
        [changed] = session.scalars(client_requests.cancel(job.tenant_id, job.id)).all()
        deliveries = session.scalars(
            select(WebhookDelivery).where(WebhookDelivery.resource_id == job.id)
        ).all()
        event = session.get_one(WebhookEvent, deliveries[0].event_id)
    assert [str(row.id) for row in deliveries] == [str(i) for i in changed.webhook_deliveries or ()]
    [shown] = hooks.deliveries(endpoint_id=asked["id"])
    assert (shown["event"], shown["sequence"]) == ("job.canceled", changed.sequence)
    assert hooks.deliveries(endpoint_id=off["id"]) == []
    assert event.data["state"] == "canceled"


def test_workers_are_told_only_of_what_they_have_room_for(hooks: Hooks) -> None:
    """Of the rest they are told by nobody: who sends comes to it, or the dispatcher finds it."""
    endpoint = decode_id("whe", hooks.register(URL)["id"])
    of_endpoint = WebhookDelivery.endpoint_id == endpoint
    claim = delivery_queries.claim_next(str(endpoint), LEASE)

    def is_told() -> bool:
        job = hooks.queue()
        canceled = session.scalars(client_requests.cancel(hooks.tenant, job.id)).one()
        return bool(canceled.webhook_deliveries)

    with hooks.database() as session:  # never committed, so no worker sees any of it
        assert [is_told() for _ in range(2 * AT_ONCE)] == [True] * 2 * AT_ONCE
        claimed = [session.scalars(claim).one() for _ in range(AT_ONCE)]
        assert session.scalars(claim).one_or_none() is None
        assert not is_told()
        ended = delivery_queries.succeed(claimed[0].id, claimed[0].attempts)
        assert session.scalars(ended).one_or_none() is not None
        assert is_told()
        session.execute(queries.mark_failing(endpoint))
        assert not is_told()
        session.execute(update(WebhookDelivery).where(of_endpoint).values(lease_until=None))
        left = set(session.scalars(select(WebhookDelivery.id).where(of_endpoint, PENDING)))
        assert len(left) == 2 * AT_ONCE + 2
        while left:
            [offered] = left.intersection(session.scalars(delivery_queries.list_due(200)))
            attempts = select(WebhookDelivery.attempts).where(WebhookDelivery.id == offered)
            session.execute(delivery_queries.succeed(offered, session.scalars(attempts).one()))
            left.discard(offered)


def test_workers_are_not_told_of_what_a_receiver_holds_back(alone: Alone, tmp_path: Path) -> None:
    """They could do nothing, and a hold may last an hour."""
    url = alone.environment["DARKROOM_DATABASE_URL"]
    key = create_key(url, tenant="hooks", name="api", scopes=EVERY_SCOPE)
    api = ApiProcess(alone.environment, free_port(), key, tmp_path / "api.log")
    worker = WorkerProcess(alone.environment, ["cpu"], tmp_path / "worker.log")

    def cancel(receiver: str) -> dict[str, str]:
        webhook = {"url": receiver, "events": ["job.canceled"]}
        job = api.http.post("/v1/jobs", json={"prompt": "a red house", "webhook": webhook}).json()
        answered = api.http.post(f"/v1/jobs/{job['id']}/cancel").json()
        assert answered["state"] == "canceled", answered
        return {"job_id": job["id"]}

    def is_tried(job: dict[str, str]) -> bool:
        [delivery] = api.http.get("/v1/webhook-deliveries", params=job).json()["data"]
        return bool(delivery["attempts"])

    with (
        Receiver(answer(503, {"retry-after": "600"})) as receiver,
        Redis.from_url(alone.environment["DARKROOM_REDIS_URL"]) as queue,
        api,
    ):
        with worker:
            job = cancel(f"{receiver.url}/busy")
            wait_until(lambda: is_tried(job), 40, "an attempt on record")
        waiting = queue.llen(WEBHOOK_QUEUE)
        cancel(f"{receiver.url}/busy?job=2")
        assert queue.llen(WEBHOOK_QUEUE) == waiting
        cancel(f"{receiver.url}/free")
        assert queue.llen(WEBHOOK_QUEUE) == waiting + 1


def test_ids_of_events_are_version_7_and_in_order(hooks: Hooks) -> None:
    hooks.register(URL)
    jobs = [hooks.queue() for _ in range(5)]
    for job in jobs:
        hooks.cancel(job)
    with hooks.database.begin() as session:
        events = session.scalars(
            select(WebhookEvent)
            .where(WebhookEvent.resource_id.in_([job.id for job in jobs]))
            .order_by(WebhookEvent.created_at)
        ).all()
    assert {event.id.version for event in events} == {7}
    assert {event.id.variant for event in events} == {"specified in RFC 4122"}
    stamps = [event.id.int >> 80 for event in events]
    assert stamps == sorted(stamps)
    created = events[0].created_at.timestamp() * 1000
    assert stamps[0] == pytest.approx(created, abs=10_000)


def test_batches_emit_through_the_same_outbox(hooks: Hooks) -> None:
    """What the code of batches does at the end of a batch."""
    hooks.register(URL, events=["batch.completed"])
    batch = hooks.queue().id  # Any id will do.
    own = {"url": "https://own.invalid/", "events": ["batch.completed"]}
    with hooks.database.begin() as session:
        made = session.scalar(
            outbox.emit(
                hooks.tenant,
                EventType.BATCH_COMPLETED,
                batch,
                {"state": "completed", "counts": {"succeeded": 3}},
                sequence=4,
                webhook=own,
            )
        )
        assert len(made or []) == 2
        silent = outbox.emit(hooks.tenant, EventType.BATCH_VALIDATED, batch, {}, webhook=own)
        assert session.scalar(silent) is None
    deliveries = hooks.deliveries(event="batch.completed")
    [event] = [d["event_id"] for d in deliveries if d["url"] == own["url"]]
    assert event.startswith("evt_")
    assert sum(d["event_id"] == event for d in deliveries) == 2


def test_an_endpoint_that_is_switched_off_gives_up_what_waits(hooks: Hooks) -> None:
    made = hooks.register(URL)
    hooks.cancel(hooks.queue())
    with hooks.database.begin() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.endpoint_id == decode_id("whe", made["id"]))
            .values(due_at=func.now() + timedelta(hours=1))
        )
    hooks.http.patch(f"/v1/webhook-endpoints/{made['id']}", json={"enabled": False})
    [delivery] = hooks.deliveries(endpoint_id=made["id"])
    assert (delivery["state"], delivery["next_attempt_at"]) == ("failed", None)
    again = hooks.http.post(f"/v1/webhook-deliveries/{delivery['id']}/redeliver")
    assert (again.status_code, again.json()["code"]) == (409, "webhook_endpoint_disabled")

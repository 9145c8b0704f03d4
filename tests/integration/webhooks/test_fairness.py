"""One tenant's receivers hang; another's deliveries must not wait for them."""

import threading
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, update

from deploy.tenants import create_key
from shared.core.broker import publish_deliveries
from shared.core.tenants import Tenant
from shared.webhooks import delivery_queries, outbox
from shared.webhooks.models import EventType, WebhookDelivery
from tests.integration.webhooks.conftest import Alone, Hooks
from tests.processes import WorkerProcess, wait_until
from tests.receiver import Receiver, hang
from worker.webhooks.deliver import THREADS, FairSlots

HANGING = 45
"""Receivers of one tenant, as in the report that this test comes from."""


@pytest.mark.long
def test_hanging_receivers_of_one_tenant_do_not_delay_another(alone: Alone, tmp_path: Path) -> None:
    hooks, released = alone.hooks, threading.Event()
    other = Hooks(hooks.http, hooks.database, hooks.celery, second_tenant(alone))
    patient = {**alone.environment, "DARKROOM_WEBHOOK_TIMEOUT": "PT60S"}
    with (
        Receiver(hang(released)) as hanging,
        Receiver() as quick,
        WorkerProcess(patient, ["cpu"], tmp_path / "worker.log"),
    ):
        for number in range(2 * HANGING):
            # Jobs' own webhooks to as many hosts, each of which may have four requests at a time.
            tell(hooks, hanging.url, f"http://127.0.0.1:{number % HANGING}")
        hanging.wait(THREADS // 2)
        for _ in range(5):
            tell(other, quick.url, quick.url)
        # A request that hangs does so for a minute here.
        quick.wait(5, 20)
        assert hanging.most_in_flight <= THREADS // 2
        released.set()
        wait_until(lambda: pending(hooks) == 0, 60, "the end of the deliveries")


def second_tenant(alone: Alone) -> UUID:
    url = alone.environment["DARKROOM_DATABASE_URL"]
    create_key(url, tenant="other", name="other", scopes=["jobs"])
    with alone.hooks.database.begin() as session:
        return session.scalars(select(Tenant.id).where(Tenant.name == "other")).one()


def tell(hooks: Hooks, url: str, origin: str) -> None:
    """A canceled job's own webhook, with its hint."""
    publish_deliveries(hooks.celery, [hooks.cancel_for(url, origin)])


def pending(hooks: Hooks) -> int:
    with hooks.database.begin() as session:
        waiting = select(WebhookDelivery.id).where(WebhookDelivery.state == "pending")
        return len(session.scalars(waiting).all())


def test_the_dispatcher_offers_each_tenants_deliveries_in_turn(alone: Alone) -> None:
    hooks = alone.hooks
    tenants = [hooks.tenant, second_tenant(alone)]
    with hooks.database.begin() as session:
        for tenant, count in zip(tenants, (50, 2), strict=True):
            for number in range(count):
                webhook = {
                    "url": f"http://127.0.0.1/{number}",
                    "origin": f"http://127.0.0.1:{number}",
                    "events": ["job.canceled"],
                }
                emitted = outbox.emit(tenant, EventType.JOB_CANCELED, uuid4(), {}, webhook=webhook)
                session.execute(emitted)
        session.execute(update(WebhookDelivery).values(lease_until=None))
        offered = session.scalars(delivery_queries.list_due(10)).all()
        of = select(WebhookDelivery.tenant_id).where(WebhookDelivery.id.in_(offered))
        owners = session.scalars(of).all()
    assert owners.count(tenants[1]) == 2


def test_slots_are_shared() -> None:
    slots, (first, second, third) = FairSlots(12), (uuid4(), uuid4(), uuid4())
    assert sum(slots.take(first) for _ in range(100)) == 6
    assert sum(slots.take(second) for _ in range(100)) == 3
    assert slots.take(third)
    assert not slots.may_keep(first)  # once, since it was refused
    assert slots.may_keep(first)
    assert slots.may_keep(third)


def test_a_slot_that_everybody_waits_for_is_given_up() -> None:
    slots, owners = FairSlots(2), [uuid4() for _ in range(3)]
    assert [slots.take(owner) for owner in owners] == [True, True, False]
    assert not slots.may_keep(owners[0])
    slots.release(owners[0])
    assert slots.take(owners[2])

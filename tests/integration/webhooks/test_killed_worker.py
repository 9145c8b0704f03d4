"""A CPU worker is killed in the middle of a request: another sends it again, under the same id."""

import threading
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select, update

from shared.core.broker import publish_deliveries
from shared.core.ids import to_wire
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.jobs.queries import client_requests
from shared.webhooks.models import WebhookAttempt, WebhookDelivery
from tests.integration.webhooks.conftest import Alone, Hooks
from tests.processes import WorkerProcess, wait_until
from tests.receiver import Receiver, answer, hang
from worker.webhooks.deliver import Deliverer
from worker.webhooks.progress import WebhookHints


def test_a_request_cut_by_a_kill_is_sent_again_under_the_same_id(
    alone: Alone, tmp_path: Path
) -> None:
    hooks, released = alone.hooks, threading.Event()
    with Receiver(hang(released)) as receiver:
        webhook = {"url": receiver.url, "events": ["job.canceled"], "origin": receiver.url}
        job = hooks.queue(webhook=webhook)
        with WorkerProcess(alone.environment, ["cpu"], tmp_path / "first.log") as first:
            with hooks.database.begin() as session:
                canceled = session.scalars(client_requests.cancel(hooks.tenant, job.id)).one()
                made = list(canceled.webhook_deliveries or ())
            publish_deliveries(hooks.celery, made)
            receiver.wait(1)
            first.kill()
        with hooks.database.begin() as session:
            delivery = session.scalars(select(WebhookDelivery)).one()
            assert (delivery.id, delivery.state, delivery.attempts) == (made[0], "pending", 1)
            assert session.scalar(select(func.count()).select_from(WebhookAttempt)) == 0
            past = func.clock_timestamp() - timedelta(seconds=1)
            session.execute(update(WebhookDelivery).values(lease_until=past))
        receiver.behaviour = answer(200)
        with WorkerProcess(alone.environment, ["cpu"], tmp_path / "second.log"):
            wait_until(lambda: _state(hooks) == "succeeded", 60, "the delivery")
        released.set()
    assert len(receiver.received) == 2
    assert {request.id for request in receiver.received} == {to_wire("evt", delivery.event_id)}
    with hooks.database.begin() as session:
        [recorded] = session.scalars(select(WebhookAttempt)).all()
        assert (recorded.number, recorded.status) == (2, 200)


def _state(hooks: Hooks) -> str:
    with hooks.database.begin() as session:
        return session.scalars(select(WebhookDelivery.state)).one()


def test_a_request_under_way_keeps_its_worker_from_being_empty(
    alone: Alone, settings: Settings, storage: Storage
) -> None:
    hooks, released = alone.hooks, threading.Event()
    deliverer = Deliverer(settings, hooks.database, storage, WebhookHints(hooks.celery))
    assert deliverer.idle
    with Receiver(hang(released)) as receiver:
        webhook = {"url": receiver.url, "events": ["job.canceled"], "origin": receiver.url}
        job = hooks.queue(webhook=webhook)
        with hooks.database.begin() as session:
            canceled = session.scalars(client_requests.cancel(hooks.tenant, job.id)).one()
            [made] = canceled.webhook_deliveries or ()
        assert deliverer.offer(made)
        receiver.wait(1)
        assert not deliverer.idle
        released.set()
        wait_until(lambda: deliverer.idle, 10, "the end of the request")
    deliverer.close()

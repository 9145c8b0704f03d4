"""Many jobs and a receiver that comes and goes: every job's end is delivered, under one id.

`DARKROOM_FLAPPING_JOBS=1000 pytest tests/integration/webhooks/test_flapping.py` is the full trial.
"""

import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from shared.core.broker import publish_deliveries
from shared.core.ids import decode_id, encode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.jobs.models import Job
from shared.jobs.state import TERMINAL_STATES
from shared.webhooks.models import WebhookAttempt, WebhookDelivery
from tests.integration.webhooks.conftest import Alone, Hooks
from tests.processes import WorkerProcess, wait_until
from tests.receiver import Behaviour, Receiver, Request, answer, drip, hang, reset
from worker.webhooks.deliver import Deliverer
from worker.webhooks.progress import WebhookNotifier

JOBS = int(os.environ.get("DARKROOM_FLAPPING_JOBS", "12"))
NEVER = threading.Event()
WAYS_TO_FAIL: list[Behaviour] = [
    answer(500),
    reset,
    answer(302, {"location": "http://127.0.0.1:1/"}),
    answer(503, {"retry-after": "1"}),
    answer(404),
    hang(NEVER),
    drip,
]
SLOW = (5, 6)


class Flapping:
    """Fails each event a few times, each time in another way, before it takes it."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.taken: Counter[str] = Counter()
        self.asked = threading.Event()
        """Set by each request."""

    def __call__(self, request: Request) -> None:
        event = request.received.id
        number = int(event[-3:], 36)
        with self._lock:
            self._seen[event] += 1
            seen = self._seen[event]
        self.asked.set()
        if seen > number % 4:
            with self._lock:
                self.taken[event] += 1
            request.reply(200)
            return
        way = (number + seen) % len(WAYS_TO_FAIL)
        if way in SLOW and number % 12:
            way = 0  # The worker's patience with each would only make the test long.
        WAYS_TO_FAIL[way](request)


@pytest.mark.long
@pytest.mark.timeout(max(180, JOBS * 3))
def test_every_end_is_delivered_once_at_least_and_under_one_id(
    hooks: Hooks, delivery_worker: WorkerProcess, generate_worker: WorkerProcess
) -> None:
    flapping = Flapping()
    with Receiver(flapping) as receiver:
        path = f"/v1/webhook-endpoints/{hooks.register(receiver.url)['id']}"
        began = datetime.now(UTC).isoformat()
        jobs = [submit(hooks, number) for number in range(JOBS)]
        wait_until(lambda: pending(hooks, jobs) == 0, 60 + JOBS, "the end of all jobs")

        def all_delivered() -> bool:
            flapping.asked.clear()
            hooks.make_due()  # Lets the hours of the schedule pass.
            flapping.asked.wait(1)
            # A machine so busy that the worker's patience is too short for ten attempts in a row
            # fails deliveries for good; whoever runs the receiver then asks for them again.
            hooks.http.post(f"{path}/redeliver", params={"since": began})
            return len(flapping.taken) >= JOBS

        wait_until(all_delivered, 60 + JOBS * 2, "all deliveries")
    told: dict[str, set[str]] = {}
    for request in receiver.received:
        told.setdefault(request.message["data"]["id"], set()).add(request.id)
    assert set(told) == set(jobs)
    assert {len(ids) for ids in told.values()} == {1}
    assert set(flapping.taken) == {next(iter(ids)) for ids in told.values()}
    bodies = {(request.id, strip(request.message)) for request in receiver.received}
    assert len(bodies) == JOBS


def submit(hooks: Hooks, number: int) -> str:
    """A job that will succeed, or be canceled, or expire."""
    body: dict[str, Any] = {"prompt": f"job {number}", "model": "sim", "session_id": "hooks"}
    if number % 10 == 1:
        body |= {"model": "demo", "start_within": 0.1}
    job = hooks.http.post("/v1/jobs", json=body).json()
    if number % 10 == 2:
        hooks.http.post(f"/v1/jobs/{job['id']}/cancel")
    public_id: str = job["id"]
    return public_id


def pending(hooks: Hooks, jobs: list[str]) -> int:
    """How many of the jobs have not ended."""
    ids = [decode_id("job", job) for job in jobs]
    ended = select(func.count()).where(Job.id.in_(ids), Job.state.in_(TERMINAL_STATES))
    with hooks.database.begin() as session:
        return len(jobs) - (session.scalar(ended) or 0)


def strip(message: dict[str, Any]) -> str:
    """All of a message that must not change between attempts."""
    for image in message["data"]["images"]:
        image.pop("url")
        image.pop("thumbnail_url", None)
    return repr(message)


# A CPU worker is killed in the middle of a request: another sends it again, under the same id


@pytest.mark.long
def test_a_request_cut_by_a_kill_is_sent_again_under_the_same_id(
    alone: Alone, tmp_path: Path
) -> None:
    hooks, released = alone.hooks, threading.Event()
    with Receiver(hang(released)) as receiver:
        with WorkerProcess(alone.environment, ["cpu"], tmp_path / "first.log") as first:
            made = [hooks.cancel_for(receiver.url)]
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
    assert {request.id for request in receiver.received} == {encode_id("evt", delivery.event_id)}
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
    deliverer = Deliverer(settings, hooks.database, storage, WebhookNotifier(hooks.celery))
    assert deliverer.is_idle
    with Receiver(hang(released)) as receiver:
        assert deliverer.offer(hooks.cancel_for(receiver.url))
        receiver.wait(1)
        assert not deliverer.is_idle
        released.set()
        wait_until(lambda: deliverer.is_idle, 10, "the end of the request")
    deliverer.close()

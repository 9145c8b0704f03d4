"""Jobs a second while every receiver of their webhooks hangs, against no webhooks at all.

Once with a simulated GPU of 100 ms an image, where nothing may be lost, and once with a GPU that
costs no time, which leaves the price of the outbox and of the hints themselves.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, select

from shared.core.ids import new_id
from shared.webhooks import delivery_queries
from shared.webhooks import queries as webhook_queries
from shared.webhooks.message import new_secret
from shared.webhooks.models import DEFAULT_EVENTS, WebhookDelivery
from tests.bench.row import Row, make_row
from tests.bench.system import System, running_system
from tests.receiver import Receiver, hang

_REPEATS = 5
_ENDPOINTS = 3
_THREADS = 24


def rows() -> Iterator[Row]:
    """Interleaved: without, with, without, with…"""
    released = threading.Event()
    with running_system() as system, Receiver(hang(released)) as silent:
        system.worker("tenth", _THREADS)
        system.worker("null", _THREADS)
        system.process(["-m", "worker", "cpu"], "worker_ready")
        yield _row(system, silent, "tenth", jobs=48, goal=0.97, what="100 ms an image")
        yield _row(system, silent, "null", jobs=150, goal=0.9, what="a GPU that costs no time")
        released.set()


def _row(system: System, silent: Receiver, model: str, *, jobs: int, goal: float, what: str) -> Row:
    _seconds(system, model, jobs)
    ratios, ours = [], []
    for _ in range(_REPEATS):
        alone = _seconds(system, model, jobs)
        with _endpoints(system, silent.url):
            hung = _seconds(system, model, jobs)
            told = _deliveries(system)
        # A measurement of nothing would be a fine ratio too.
        assert told == jobs * _ENDPOINTS, f"{told} deliveries of {jobs} jobs"
        ratios.append(alone / hung)
        ours.append(jobs / hung)
    return make_row(
        f"jobs/s while {_ENDPOINTS} receivers of each job hang, {what}",
        ratios,
        unit="of baseline",
        goal=goal,
        better="higher",
        baseline=f"no webhooks; ours {sorted(ours)[len(ours) // 2]:.1f} jobs/s",
    )


def _seconds(system: System, model: str, count: int) -> float:
    size = 512 if model == "tenth" else 64
    steps = 20 if model == "tenth" else 1
    return system.seconds_of(
        count, model=model, width=size, height=size, steps=steps, cost=size * size * steps
    )


@contextmanager
def _endpoints(system: System, url: str) -> Iterator[None]:
    ids = [new_id() for _ in range(_ENDPOINTS)]
    with system.database.begin() as session:
        for endpoint_id in ids:
            endpoint = {"id": endpoint_id, "tenant_id": system.tenant, "url": url, "scheme": "v1"}
            events = [str(event) for event in DEFAULT_EVENTS]
            session.execute(webhook_queries.insert_endpoint({**endpoint, "events": events}))
            session.execute(
                webhook_queries.ensure_secret(system.tenant, endpoint_id, "v1", new_secret())
            )
    yield
    for endpoint_id in ids:
        with system.database.begin() as session:
            session.execute(delivery_queries.lock_destination(str(endpoint_id)))
            session.execute(webhook_queries.delete_endpoint(system.tenant, endpoint_id))


def _deliveries(system: System) -> int:
    with system.database.begin() as session:
        return session.scalar(select(func.count()).select_from(WebhookDelivery)) or 0

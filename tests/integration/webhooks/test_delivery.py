"""Deliveries from the database through a real worker to real receivers on loopback."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select, update
from standardwebhooks import Webhook

from shared.core.ids import decode_id
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.jobs.queries import client_requests
from shared.webhooks.delivery_queries import AT_ONCE
from shared.webhooks.message import GAPS, JITTER
from shared.webhooks.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from tests.integration.webhooks.conftest import PATIENCE, Alone, Hooks
from tests.processes import WorkerProcess, wait_until
from tests.receiver import Behaviour, Received, Receiver, Request, answer, drip, hang, reset
from tests.unit.outbound.servers import Authority
from worker.webhooks import deliver
from worker.webhooks.deliver import Deliverer
from worker.webhooks.progress import WebhookNotifier

pytestmark = pytest.mark.usefixtures("delivery_worker")


def seconds_until(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def is_on_schedule(delivery: dict[str, Any], number: int) -> bool:
    """Whether the attempt after this one comes when the schedule says, give or take the jitter.

    The gap begins when the outcome is recorded: after the attempt ends, before it is seen here.
    The first is so short that it may be over by then.
    """
    seconds = GAPS[number].total_seconds()
    shortest, longest = seconds * (1 - JITTER), seconds * (1 + JITTER)
    attempt, *later = delivery["attempts"][number - 1 :]
    began, took = attempt["started_at"], timedelta(milliseconds=attempt["latency_ms"])
    following = later[0]["started_at"] if later else delivery["next_attempt_at"]
    gap = datetime.fromisoformat(following) - datetime.fromisoformat(began) - took
    return shortest <= gap.total_seconds() and seconds_until(following) <= longest


def test_an_endpoint_gets_a_signed_event_at_once(hooks: Hooks) -> None:
    with Receiver() as receiver:
        made = hooks.register(receiver.url)
        job_id = hooks.cancel(hooks.queue(job_metadata={"order": "42"}))
        [request] = receiver.wait()
        message = Webhook(made["secret"]).verify(request.body, dict(request.headers))
        delivery = hooks.wait_for_attempts(job_id=job_id)
    assert message["type"] == "job.canceled"
    assert message["data"]["id"] == job_id
    assert message["data"]["metadata"] == {"order": "42"}
    assert request.headers["content-type"] == "application/json"
    assert request.id == message["id"] == delivery["event_id"]
    assert (delivery["state"], delivery["endpoint_id"]) == ("succeeded", made["id"])
    [attempt] = delivery["attempts"]
    assert (attempt["number"], attempt["status"], attempt["error"]) == (1, 200, None)
    assert attempt["response"] == "ok"
    assert attempt["latency_ms"] > 0
    assert hooks.http.get(f"/v1/webhook-deliveries/{delivery['id']}").json() == delivery


def test_a_jobs_own_webhook_is_signed_with_the_tenants_secret(
    hooks: Hooks, generate_worker: WorkerProcess
) -> None:
    events = ["job.started", "job.succeeded"]
    with Receiver() as receiver:
        body = {"prompt": "x", "model": "sim", "webhook": {"url": receiver.url, "events": events}}
        job = hooks.http.post("/v1/jobs", json=body).json()
        receiver.wait(2)
        secret = hooks.http.get("/v1/webhook-secret").json()["secret"]
        for request in receiver.received:
            Webhook(secret).verify(request.body, dict(request.headers))
        [started] = receiver.of_type("job.started")
        [succeeded] = receiver.of_type("job.succeeded")
    assert started.message["data"]["state"] == "running"
    assert started.message["sequence"] < succeeded.message["sequence"]
    data = succeeded.message["data"]
    assert data["id"] == job["id"]
    assert data["seeds"] == job["seeds"]
    [image] = data["images"]
    answer = httpx2.get(image["url"], timeout=60, trust_env=False)
    assert hashlib.sha256(answer.content).hexdigest() == image["sha256"]
    whole = hooks.http.get(f"/v1/jobs/{job['id']}").json()
    for name in ("state", "sequence", "model", "finished_at", "error", "metadata"):
        assert data[name] == whole[name], name
    told = {d["event"] for d in hooks.deliveries(job_id=job["id"])}
    assert told == set(events)


def test_progress_is_told_to_those_who_ask(hooks: Hooks, generate_worker: WorkerProcess) -> None:
    with Receiver() as receiver, Receiver() as other:
        hooks.register(receiver.url, events=["job.progress", "job.succeeded"])
        hooks.register(other.url, events=["job.succeeded"])
        body = {"prompt": "x", "model": "sim", "steps": 100, "num_images": 16, "width": 512}
        job = hooks.http.post("/v1/jobs", json=body).json()
        wait_until(lambda: receiver.of_type("job.succeeded"), 60, "the end")

        def progress() -> list[Received]:
            heard = receiver.of_type("job.progress")
            return [request for request in heard if request.message["data"]["id"] == job["id"]]

        told = wait_until(progress, what="the progress, which the end may overtake")
        assert other.of_type("job.progress") == []
    fractions = [request.message["data"]["progress"]["fraction"] for request in told]
    assert all(0 < fraction <= 1 for fraction in fractions)
    times = [datetime.fromisoformat(request.message["timestamp"]) for request in told]
    assert all(
        later - sooner >= timedelta(seconds=0.4) for sooner, later in pairwise(sorted(times))
    )


REDIRECTION = answer(302, {"location": "http://127.0.0.1:1/"})
FAILURES = [
    pytest.param(answer(500, body=b"x" * 5000), 500, "http_error", id="500"),
    pytest.param(answer(404), 404, "http_error", id="404"),
    pytest.param(REDIRECTION, 302, "redirected", id="redirect"),
    pytest.param(reset, None, "connection_failed", id="reset"),
    pytest.param(drip, None, "deadline_exceeded", id="slow drip", marks=pytest.mark.long),
]


def once(behaviour: Behaviour) -> Behaviour:
    """Behave so at first, and well from then on."""
    rest = iter([behaviour])

    def behave(request: Request) -> None:
        next(rest, answer(204))(request)

    return behave


@pytest.mark.parametrize(("behaviour", "status", "code"), FAILURES)
def test_a_failure_is_tried_again_on_schedule(
    hooks: Hooks, behaviour: Behaviour, status: int | None, code: str
) -> None:
    with Receiver(once(behaviour)) as receiver:
        hooks.register(receiver.url)
        job_id = hooks.cancel(hooks.queue())
        delivery = hooks.wait_for_attempts(job_id=job_id)
        # Where five seconds are over before this looks, the second attempt has been made.
        assert delivery["state"] == ("pending" if len(delivery["attempts"]) == 1 else "succeeded")
        assert is_on_schedule(delivery, 1)
        hooks.make_due(delivery["id"])
        delivery = hooks.wait_for_attempts(2, job_id=job_id)
    failed, fine = delivery["attempts"]
    assert (failed["status"], failed["error"]["code"]) == (status, code)
    assert len(failed["response"] or "") <= 1024
    assert (fine["status"], fine["error"]) == (204, None)
    assert delivery["state"] == "succeeded"
    assert len({request.id for request in receiver.received}) == 1
    first, second = receiver.received
    assert first.body == second.body


def test_silence_is_cut_off_by_the_time_limit(
    alone: Alone, settings: Settings, storage: Storage
) -> None:
    hooks, released, limit = alone.hooks, threading.Event(), timedelta(seconds=0.5)
    own = settings.model_copy(update={"webhook_timeout": limit})
    deliverer = Deliverer(own, hooks.database, storage, WebhookNotifier(hooks.celery))
    with Receiver(hang(released)) as receiver:
        assert deliverer.offer(hooks.cancel_for(receiver.url))
        wait_until(lambda: deliverer.is_idle, what="the end of the request")
        released.set()
    deliverer.close()
    with hooks.database.begin() as session:
        [attempt] = session.scalars(select(WebhookAttempt)).all()
    assert attempt.error_code == "deadline_exceeded"
    assert attempt.latency_ms >= limit.total_seconds() * 1000


def test_an_attempt_that_fails_on_our_side_counts(
    alone: Alone, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be made for ever."""
    hooks = alone.hooks

    def crash(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(deliver, "attempt", crash)
    deliverer = Deliverer(settings, hooks.database, storage, WebhookNotifier(hooks.celery))
    assert deliverer.offer(hooks.cancel_for("http://127.0.0.1:9/"))
    wait_until(lambda: deliverer.is_idle, what="the end of the attempt")
    deliverer.close()
    with hooks.database.begin() as session:
        attempt = session.scalars(select(WebhookAttempt)).one()
        delivery = session.scalars(select(WebhookDelivery)).one()
    assert (attempt.number, attempt.error_code) == (1, "internal_error")
    assert "a fault" not in str(attempt.error_message)
    assert (delivery.state, delivery.attempts, delivery.lease_until) == ("pending", 1, None)


def test_who_has_lost_a_delivery_to_another_worker_writes_nothing(
    alone: Alone, settings: Settings, storage: Storage
) -> None:
    hooks = alone.hooks
    deliverer = Deliverer(settings, hooks.database, storage, WebhookNotifier(hooks.celery))

    def be_slow(request: Request) -> None:
        """The lease runs out, and another worker begins the next attempt."""
        with hooks.database.begin() as session:
            session.execute(update(WebhookDelivery).values(attempts=2))
        request.reply(500)

    with Receiver(be_slow) as receiver:
        assert deliverer.offer(hooks.cancel_for(receiver.url))
        wait_until(lambda: deliverer.is_idle, what="the end of the request")
    deliverer.close()
    with hooks.database.begin() as session:
        assert session.scalars(select(WebhookAttempt)).all() == []
        delivery = session.scalars(select(WebhookDelivery)).one()
    assert (delivery.state, delivery.attempts) == ("pending", 2)
    assert delivery.lease_until is not None


def test_a_certificate_that_nobody_trusts_fails(hooks: Hooks, tmp_path: Path) -> None:
    with Receiver(tls=Authority(tmp_path).server("127.0.0.1")) as receiver:
        hooks.register(receiver.url)
        delivery = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        assert receiver.received == []
    assert delivery["attempts"][0]["error"]["code"] == "tls_failed"
    assert delivery["state"] == "pending"


def test_a_huge_answer_is_success_and_not_read_to_its_end(hooks: Hooks) -> None:
    with Receiver(answer(200, body=b"x" * 30_000_000)) as receiver:
        hooks.register(receiver.url)
        delivery = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
    assert delivery["state"] == "succeeded"
    assert delivery["attempts"][0]["response"] == "x" * 1024


def test_410_disables_the_endpoint_and_tells_the_others(hooks: Hooks) -> None:
    with Receiver(answer(410)) as leaving, Receiver() as staying:
        gone = hooks.register(leaving.url, events=["job.canceled"])
        hooks.register(staying.url, events=["batch.completed"])
        delivery = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        [request] = staying.wait()
        hooks.cancel(hooks.queue())
        shown = hooks.endpoint(gone)
    assert delivery["state"] == "failed"
    assert delivery["attempts"][0]["error"]["code"] == "gone"
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
    assert request.message["type"] == "endpoint.disabled"
    assert request.message["data"]["id"] == gone["id"]
    assert request.message["data"]["reason"] == "gone"
    assert len(leaving.received) == 1


def test_retry_after_holds_new_events_too_and_nothing_overtakes(hooks: Hooks) -> None:
    with Receiver(answer(503, {"retry-after": "600"})) as receiver, Receiver() as other:
        made = hooks.register(receiver.url)
        jobs = [hooks.cancel(hooks.queue())]
        held = hooks.wait_for_attempts(job_id=jobs[0])
        assert 500 < seconds_until(held["next_attempt_at"]) <= 600
        hooks.register(other.url)
        jobs += [hooks.cancel(hooks.queue()) for _ in range(3)]
        other.wait(3)
        later = [entry for entry in hooks.deliveries(endpoint_id=made["id"]) if entry != held]
        assert [entry["attempts"] for entry in later] == [[]] * 3
        assert {entry["next_attempt_at"] for entry in later} == {held["next_attempt_at"]}
        assert len(receiver.received) == 1
        receiver.behaviour = answer(200)
        hooks.end_holds()
        wait_until(
            lambda: {d["state"] for d in hooks.deliveries(endpoint_id=made["id"])} == {"succeeded"},
            what="the deliveries",
        )
        done = hooks.deliveries(endpoint_id=made["id"])
    told = [request.message["data"]["id"] for request in receiver.received]
    assert (told[:2], sorted(told[2:])) == ([jobs[0]] * 2, sorted(jobs[1:]))
    # Once it answers, several requests go out at a time: begun in order, they come in any.
    begun = sorted(done, key=lambda delivery: str(delivery["attempts"][-1]["started_at"]))
    assert [delivery["job_id"] for delivery in begun] == jobs


def test_retry_after_counts_for_an_hour_at_most(hooks: Hooks) -> None:
    with Receiver(answer(429, {"retry-after": "9" * 20})) as receiver:
        hooks.register(receiver.url)
        held = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
    assert 3500 < seconds_until(held["next_attempt_at"]) <= 3600


def test_retry_after_of_one_path_holds_no_other(hooks: Hooks) -> None:
    """Neither what comes later nor a retry that waits already."""

    def behave(request: Request) -> None:
        busy = request.path.startswith("/hooks/busy")
        request.reply(503 if busy else 500, {"retry-after": "600"} if busy else {})

    def cancel(path: str) -> str:
        url = f"{receiver.url}/{path}"
        own = {"url": url, "events": ["job.canceled"], "origin": receiver.url}
        return hooks.cancel(hooks.queue(webhook=own))

    with Receiver(behave) as receiver:
        failed = hooks.wait_for_attempts(job_id=cancel("fine"))
        hooks.postpone(failed["id"], timedelta(seconds=100))  # five are soon over
        [retried] = hooks.deliveries(job_id=failed["job_id"])
        busy = hooks.wait_for_attempts(job_id=cancel("busy?job=1"))
        same = cancel("busy?job=2")
        [kept] = hooks.deliveries(job_id=retried["job_id"])
        receiver.behaviour = answer(200)
        later = hooks.wait_for_attempts(job_id=cancel("fine"))
        [waiting] = hooks.deliveries(job_id=same)
        hooks.make_due(retried["id"])
        tried = len(retried["attempts"])
        fine = hooks.wait_for_attempts(tried + 1, job_id=retried["job_id"])
    assert 500 < seconds_until(busy["next_attempt_at"]) <= 600
    assert kept["next_attempt_at"] == retried["next_attempt_at"]
    assert seconds_until(kept["next_attempt_at"]) < 120
    assert (waiting["state"], waiting["attempts"]) == ("pending", [])
    assert (later["state"], fine["state"]) == ("succeeded", "succeeded")


@pytest.mark.parametrize(
    "way",
    # Of a new URL nothing is said to a worker: the dispatcher comes upon it.
    ["redeliver", "test", "range", pytest.param("url", marks=pytest.mark.long)],
)
def test_who_asks_for_a_delivery_ends_the_hold(hooks: Hooks, way: str) -> None:
    with Receiver(answer(503, {"retry-after": "600"})) as receiver:
        made = hooks.register(receiver.url)
        held = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        receiver.behaviour = answer(200)
        path = f"/v1/webhook-endpoints/{made['id']}"
        if way == "redeliver":
            hooks.http.post(f"/v1/webhook-deliveries/{held['id']}/redeliver")
        elif way == "range":
            since = held["created_at"]
            hooks.http.post(f"{path}/redeliver", params={"since": since, "state": "all"})
        elif way == "test":
            hooks.http.post(f"{path}/test")
        else:
            hooks.http.patch(path, json={"url": f"{receiver.url}/moved"})
        wait_until(
            lambda: hooks.deliveries(job_id=held["job_id"])[0]["state"] == "succeeded",
            40,
            "the delivery",
        )


def test_the_whole_schedule_then_failure_then_redelivery(hooks: Hooks) -> None:
    with Receiver(answer(500)) as receiver:
        hooks.register(receiver.url)
        job_id = hooks.cancel(hooks.queue())
        for number in range(1, len(GAPS)):
            delivery = hooks.wait_for_attempts(number, job_id=job_id)
            assert is_on_schedule(delivery, number)
            hooks.make_due(delivery["id"], attempts=number)
        delivery = hooks.wait_for_attempts(len(GAPS), job_id=job_id)
        assert (delivery["state"], delivery["next_attempt_at"]) == ("failed", None)
        receiver.behaviour = answer(200)
        again = hooks.http.post(f"/v1/webhook-deliveries/{delivery['id']}/redeliver")
        assert (again.status_code, again.json()["state"]) == (202, "pending")
        delivery = hooks.wait_for_attempts(len(GAPS) + 1, job_id=job_id)
    assert delivery["state"] == "succeeded"
    assert len(receiver.received) == len(GAPS) + 1
    assert {request.id for request in receiver.received} == {delivery["event_id"]}


def test_five_days_of_failure_disable_an_endpoint(hooks: Hooks) -> None:
    with Receiver(answer(500)) as failing, Receiver() as other:
        made = hooks.register(failing.url, events=["job.canceled"])
        hooks.register(other.url, events=["batch.completed"])
        first = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        hooks.postpone(first["id"], timedelta(hours=1))  # the second job's is to be the last
        assert hooks.endpoint(made)["failing_since"] is not None
        with hooks.database.begin() as session:
            session.execute(
                update(WebhookEndpoint)
                .where(WebhookEndpoint.id == decode_id("whe", made["id"]))
                .values(failing_since=func.now() - timedelta(days=5))
            )
        hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        [request] = other.wait()
        shown = hooks.endpoint(made)
        states = {delivery["state"] for delivery in hooks.deliveries(endpoint_id=made["id"])}
    assert request.message["type"] == "endpoint.disabled"
    assert request.message["data"]["reason"] == "failing"
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "failing")
    assert states == {"failed"}


def test_a_success_clears_the_record_of_failure(hooks: Hooks) -> None:
    with Receiver(answer(500)) as receiver:
        made = hooks.register(receiver.url)
        delivery = hooks.wait_for_attempts(job_id=hooks.cancel(hooks.queue()))
        assert hooks.endpoint(made)["failing_since"] is not None
        receiver.behaviour = answer(200)
        hooks.make_due(delivery["id"])
        wait_until(lambda: hooks.endpoint(made)["failing_since"] is None, 30, "health")


def test_a_slow_receiver_delays_nobody_else(hooks: Hooks) -> None:
    released = threading.Event()
    with Receiver(hang(released)) as slow, Receiver() as quick:
        hooks.register(slow.url)
        for _ in range(3 * AT_ONCE):
            hooks.cancel(hooks.queue())
        slow.wait(1)
        hooks.register(quick.url)
        job_ids = {hooks.cancel(hooks.queue()) for _ in range(3 * AT_ONCE)}
        quick.wait(len(job_ids))
        assert {request.message["data"]["id"] for request in quick.received} == job_ids
        delivered = [d for d in hooks.deliveries(state="succeeded") if d["url"] == slow.url]
        assert delivered == []
        released.set()


def test_many_events_go_out_at_once_but_never_too_many(hooks: Hooks) -> None:
    jobs = [hooks.queue() for _ in range(6 * AT_ONCE)]
    is_full = threading.Event()

    def wait_for_company(request: Request) -> None:
        if receiver.in_flight >= AT_ONCE:
            is_full.set()
        is_full.wait(PATIENCE.total_seconds() / 2)
        request.reply(200)

    with Receiver(wait_for_company) as receiver:
        hooks.register(receiver.url)
        with hooks.database.begin() as session:  # All at the same moment, and without a hint.
            for job in jobs:
                session.scalars(client_requests.cancel(hooks.tenant, job.id)).one()
        receiver.wait(len(jobs))
        assert 1 < receiver.most_in_flight <= AT_ONCE


def test_a_line_of_a_batch_can_bring_its_own_receiver(hooks: Hooks) -> None:
    with Receiver() as receiver:
        line = {"prompt": "a red circle", "webhook": {"url": receiver.url}}
        body = {"items": [line, {"prompt": "a blue square"}], "defaults": {"model": "demo"}}
        batch = hooks.http.post("/v1/batches", json=body).json()
        path = f"/v1/batches/{batch['id']}"
        first, second = hooks.http.get(f"{path}/items").json()["data"]
        hooks.http.post(f"{path}/cancel")
        wait_until(lambda: hooks.http.get(path).json()["finished_at"], 30, "the end")
        [request] = receiver.wait()
        assert request.message["data"]["id"] == first["id"]
        assert request.message["data"]["batch_id"] == batch["id"]
        assert hooks.deliveries(job_id=second["id"]) == []
        secret = hooks.http.get("/v1/webhook-secret").json()["secret"]
        Webhook(secret).verify(request.body, dict(request.headers))


def test_both_secrets_sign_after_a_rotation(hooks: Hooks) -> None:
    with Receiver() as receiver:
        made = hooks.register(receiver.url)
        path = f"/v1/webhook-endpoints/{made['id']}/rotate-secret"
        rotated = hooks.http.post(path).json()
        assert rotated["secret"] != made["secret"]
        hooks.cancel(hooks.queue())
        [request] = receiver.wait()
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    for secret in (made["secret"], rotated["secret"]):
        Webhook(secret).verify(request.body, dict(request.headers))


def test_a_test_event_reaches_even_a_disabled_endpoint(hooks: Hooks) -> None:
    with Receiver() as receiver, Receiver() as other:
        made = hooks.register(receiver.url, enabled=False)
        hooks.register(other.url)
        answered = hooks.http.post(f"/v1/webhook-endpoints/{made['id']}/test")
        assert (answered.status_code, answered.json()["event"]) == (202, "endpoint.test")
        [request] = receiver.wait()
        assert request.message["data"]["id"] == made["id"]
        assert other.received == []


def test_a_range_is_sent_again(hooks: Hooks) -> None:
    with Receiver(answer(410)) as receiver:
        made = hooks.register(receiver.url)
        hooks.cancel(hooks.queue())
        receiver.wait()
        wait_until(lambda: not hooks.endpoint(made)["enabled"], 30, "the end")
        path = f"/v1/webhook-endpoints/{made['id']}"
        since = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
        refused = hooks.http.post(f"{path}/redeliver", params={"since": since})
        assert refused.json()["code"] == "webhook_endpoint_disabled"
        hooks.http.patch(path, json={"enabled": True})
        receiver.behaviour = answer(200)
        later = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        none = hooks.http.post(f"{path}/redeliver", params={"since": later})
        assert none.json() == {"deliveries": 0}
        again = hooks.http.post(f"{path}/redeliver", params={"since": since})
        assert (again.status_code, again.json()) == (202, {"deliveries": 1})
        receiver.wait(2)
    assert len({request.id for request in receiver.received}) == 1


def test_a_killed_workers_delivery_is_sent_by_another(
    hooks: Hooks, environment: dict[str, str], tmp_path: Path
) -> None:
    released = threading.Event()
    with Receiver(hang(released)) as receiver:
        job_id = hooks.cancel(
            hooks.queue(
                webhook={"url": receiver.url, "events": ["job.canceled"], "origin": receiver.url}
            )
        )
        receiver.wait()
        [delivery] = hooks.deliveries(job_id=job_id)
        row = select(WebhookDelivery).where(WebhookDelivery.id == decode_id("whd", delivery["id"]))
        with hooks.database.begin() as session:
            # As if its worker had died: nobody will report this attempt, and the lease is over.
            held = session.scalars(row.with_for_update()).one()
            held.attempts += 1
            held.lease_until = datetime(2020, 1, 1, tzinfo=UTC)
        released.set()
        delivery = hooks.wait_for_attempts(job_id=job_id)
    assert [attempt["number"] for attempt in delivery["attempts"]] == [3]
    assert delivery["state"] == "succeeded"
    assert {request.id for request in receiver.received} == {delivery["event_id"]}

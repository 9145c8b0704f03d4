"""What Darkroom delivers is verified by `darkroom.webhooks.verify`, and nothing else is."""

from collections.abc import Iterator

import pytest

import darkroom
from darkroom import Client, InvalidWebhookSignatureError
from darkroom.webhooks import verify
from tests.processes import WorkerProcess, wait_until
from tests.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    with Receiver() as running:
        yield running


def test_real_deliveries_of_both_kinds(
    client: Client, cpu_worker: WorkerProcess, receiver: Receiver
) -> None:
    shared = client.webhooks.endpoints.create(receiver.url + "/v1", description="shared secret")
    public = client.webhooks.endpoints.create(receiver.url + "/v1a", signature="v1a")
    assert shared.secret is not None
    assert public.secret is None
    assert shared.secret not in repr(shared)
    rotated = client.webhooks.endpoints.rotate_secret(shared)
    assert rotated.secret is not None
    own: darkroom.types.Webhook = {"url": receiver.url + "/own"}
    handle = client.jobs.submit("a bell", webhook=own, metadata={"order": "42"})
    came = {each.path: each for each in receiver.wait(3, 60)}
    secrets: dict[str, list[str]] = {
        "/hooks/v1": [shared.secret, rotated.secret],
        "/hooks/v1a": list(public.public_keys),
        "/hooks/own": [client.webhooks.secret.get().secret],
    }
    for path, fitting in secrets.items():
        received = came[path]
        for secret in fitting:
            event = verify(received.body, received.headers, secret)
            assert (event.type, event.data["id"]) == ("job.succeeded", handle.id)
            assert event.data["metadata"] == {"order": "42"}
        others = [secret for name, part in secrets.items() if name != path for secret in part]
        for secret in others:
            with pytest.raises(InvalidWebhookSignatureError):
                verify(received.body, received.headers, secret)
        assert verify(received.body, received.headers, [*others, fitting[0]]) == event
    assert_the_log_is_right(client, handle.id, shared.id)
    for endpoint in (shared, public):
        client.webhooks.endpoints.delete(endpoint)


def assert_the_log_is_right(client: Client, job_id: str, endpoint_id: str) -> None:
    def delivered() -> list[darkroom.types.Delivery]:
        found = client.webhooks.deliveries.list(job=job_id, endpoint=endpoint_id).all()
        return [each for each in found if each.state == "succeeded"]

    [delivery] = wait_until(delivered, what="the delivery in the log")
    assert delivery.attempts[0].status == 200
    assert client.webhooks.deliveries.get(delivery).event == "job.succeeded"
    assert client.webhooks.deliveries.redeliver(delivery).state == "pending"
    since = delivery.created_at
    count = client.webhooks.endpoints.redeliver(endpoint_id, since=since, state="all")
    assert count.deliveries == 1


def test_endpoints_are_managed(
    client: Client, cpu_worker: WorkerProcess, receiver: Receiver
) -> None:
    made = client.webhooks.endpoints.create(receiver.url, events=["job.failed"], enabled=False)
    assert made.id in [each.id for each in client.webhooks.endpoints.list(page_size=1)]
    changed = client.webhooks.endpoints.update(made, events=["job.succeeded"], enabled=True)
    assert changed.events == ("job.succeeded",)
    assert client.webhooks.endpoints.get(made).enabled
    tested = client.webhooks.endpoints.test(made)
    assert tested.event == "endpoint.test"
    [received] = receiver.wait(1, 60)
    assert made.secret is not None
    event = verify(received.body, received.headers, made.secret)
    assert event.id == tested.event_id
    client.webhooks.endpoints.delete(made)
    with pytest.raises(darkroom.NotFoundError):
        client.webhooks.endpoints.get(made)
    before = client.webhooks.secret.get()
    after = client.webhooks.secret.rotate()
    assert after.secret != before.secret
    assert after.previous_expires_at is not None

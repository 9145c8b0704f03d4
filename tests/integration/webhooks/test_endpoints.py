"""Webhook endpoints and secrets over HTTP."""

import base64
from typing import Any

import pytest

from shared.core.ids import encode_id, new_id
from tests.integration.webhooks.conftest import Hooks
from tests.processes import ApiProcess

URL = "https://example.com/hooks"


def test_a_secret_is_shown_once(hooks: Hooks) -> None:
    made = hooks.register(URL, events=["job.succeeded"], description="orders")
    assert len(base64.b64decode(made["secret"].removeprefix("whsec_"))) == 32
    shown = hooks.endpoint(made)
    assert "secret" not in shown
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert (shown["enabled"], shown["signature"], shown["public_keys"]) == (True, "v1", [])


def test_without_events_an_endpoint_hears_how_things_end(hooks: Hooks) -> None:
    events = hooks.register(URL)["events"]
    assert {"job.succeeded", "job.failed", "job.canceled", "job.expired"} < set(events)
    assert {"job.started", "job.progress"}.isdisjoint(events)


def test_a_v1a_endpoint_has_a_public_key_and_no_secret(hooks: Hooks) -> None:
    made = hooks.register(URL, signature="v1a")
    assert made["secret"] is None
    [key] = hooks.endpoint(made)["public_keys"]
    assert len(base64.b64decode(key.removeprefix("whpk_"))) == 32
    rotated = hooks.http.post(f"/v1/webhook-endpoints/{made['id']}/rotate-secret").json()
    assert rotated["public_keys"][1:] == [key]


def test_changes_touch_only_what_they_name(hooks: Hooks) -> None:
    made = hooks.register(URL, events=["job.failed"], description="before")
    path = f"/v1/webhook-endpoints/{made['id']}"
    changed = hooks.http.patch(path, json={"description": "after", "enabled": False}).json()
    assert (changed["description"], changed["enabled"]) == ("after", False)
    assert changed["disabled_reason"] == "by_client"
    assert (changed["url"], changed["events"]) == (URL, ["job.failed"])
    again = hooks.http.patch(path, json={"enabled": True}).json()
    assert (again["enabled"], again["disabled_reason"]) == (True, None)


def test_a_deleted_endpoint_is_gone(hooks: Hooks) -> None:
    made = hooks.register(URL)
    path = f"/v1/webhook-endpoints/{made['id']}"
    assert hooks.http.delete(path).status_code == 204
    assert hooks.http.get(path).status_code == 404
    assert hooks.http.delete(path).status_code == 404


def test_pages_of_endpoints(hooks: Hooks) -> None:
    made = [hooks.register(URL)["id"] for _ in range(3)]
    first = hooks.http.get("/v1/webhook-endpoints", params={"limit": 2}).json()
    after = {"limit": 2, "after": first["next_cursor"]}
    second = hooks.http.get("/v1/webhook-endpoints", params=after).json()
    seen = [endpoint["id"] for endpoint in first["data"] + second["data"]]
    assert seen == made[::-1]
    assert (first["has_more"], second["has_more"]) == (True, False)


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "/url", "missing"),
        ({"url": "ftp://example.com/"}, "/url", "url_not_allowed"),
        ({"url": "https://user:pw@example.com/"}, "/url", "url_not_allowed"),
        ({"url": "https://10.0.0.1/"}, "/url", "address_not_allowed"),
        ({"url": "https://[fd00::1]/"}, "/url", "address_not_allowed"),
        ({"url": "http://169.254.169.254/latest"}, "/url", "address_not_allowed"),
        ({"url": URL, "events": ["job.exploded"]}, "/events/0", "literal_error"),
        ({"url": URL, "events": ["endpoint.test"]}, "/events/0", "literal_error"),
        ({"url": URL, "events": []}, "/events", "too_short"),
        ({"url": URL, "signature": "v2"}, "/signature", "literal_error"),
        ({"url": URL, "secret": "whsec_mine"}, "/secret", "extra_forbidden"),
        ({"url": URL, "description": "a\u0000b"}, "/description", "control_characters"),
    ],
)
def test_what_cannot_be_registered(
    hooks: Hooks, body: dict[str, Any], pointer: str, code: str
) -> None:
    answer = hooks.http.post("/v1/webhook-endpoints", json=body)
    assert answer.status_code == 422, answer.text
    [error] = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == (pointer, code)


@pytest.mark.parametrize("body", [{}, {"url": None}, {"events": None}])
def test_a_change_must_say_something(hooks: Hooks, body: dict[str, Any]) -> None:
    made = hooks.register(URL)
    assert hooks.http.patch(f"/v1/webhook-endpoints/{made['id']}", json=body).status_code == 422


def test_a_job_cannot_bring_a_url_that_leads_inside(hooks: Hooks) -> None:
    body = {"prompt": "x", "webhook": {"url": "https://192.168.0.1/"}}
    answer = hooks.http.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/webhook/url"


def test_strangers_see_and_change_nothing(
    hooks: Hooks, api: ApiProcess, other_api_key: str
) -> None:
    made = hooks.register(URL)
    path = f"/v1/webhook-endpoints/{made['id']}"
    with api.client(other_api_key) as stranger:
        assert stranger.get(path).status_code == 404
        assert stranger.patch(path, json={"enabled": False}).status_code == 404
        assert stranger.delete(path).status_code == 404
        for action in ("rotate-secret", "test", "redeliver?since=2026-01-01T00:00:00Z"):
            assert stranger.post(f"{path}/{action}").status_code == 404
        assert stranger.get("/v1/webhook-endpoints").json()["data"] == []
        ours = hooks.http.get("/v1/webhook-secret").json()["secret"]
        assert stranger.get("/v1/webhook-secret").json()["secret"] != ours
    assert hooks.endpoint(made)["enabled"] is True


def test_a_tenant_has_its_fill_of_endpoints(hooks: Hooks) -> None:
    statuses = [
        hooks.http.post("/v1/webhook-endpoints", json={"url": URL}).status_code for _ in range(51)
    ]
    assert statuses == [201] * 50 + [409]


def test_the_tenants_own_secret_stays_until_it_is_rotated(hooks: Hooks) -> None:
    first = hooks.http.get("/v1/webhook-secret").json()
    assert hooks.http.get("/v1/webhook-secret").json() == first
    rotated = hooks.http.post("/v1/webhook-secret/rotate").json()
    assert rotated["secret"] != first["secret"]
    assert rotated["previous_expires_at"] is not None
    assert hooks.http.get("/v1/webhook-secret").json() == rotated


@pytest.mark.parametrize(
    "query",
    ["endpoint_id=job_x", "job_id=1", "state=lost", "event=job.exploded", "limit=0", "after=x"],
)
def test_filters_that_cannot_be(hooks: Hooks, query: str) -> None:
    assert hooks.http.get(f"/v1/webhook-deliveries?{query}").status_code == 422


def test_deliveries_are_of_a_job_or_of_a_batch(hooks: Hooks) -> None:
    both = {"job_id": encode_id("job", new_id()), "batch_id": encode_id("batch", new_id())}
    refused = hooks.http.get("/v1/webhook-deliveries", params=both)
    assert refused.status_code == 422
    assert "not by both" in refused.text
    for name, value in both.items():
        assert hooks.deliveries(**{name: value}) == []


def test_deliveries_come_page_by_page(hooks: Hooks) -> None:
    made = hooks.register(URL)
    jobs = [hooks.cancel(hooks.queue()) for _ in range(3)]
    pages: list[list[str]] = []
    after = None
    while len(pages) < 3:
        query = {"endpoint_id": made["id"], "limit": 1} | ({"after": after} if after else {})
        page = hooks.http.get("/v1/webhook-deliveries", params=query).json()
        pages.append([delivery["job_id"] for delivery in page["data"]])
        after = page["next_cursor"]
    assert pages == [[job] for job in reversed(jobs)]
    assert not page["has_more"]


def test_what_was_made_after_a_time_is_not_delivered_again(hooks: Hooks) -> None:
    made = hooks.register(URL)
    hooks.cancel(hooks.queue())
    [first] = hooks.deliveries(endpoint_id=made["id"])
    hooks.cancel(hooks.queue())
    path = f"/v1/webhook-endpoints/{made['id']}/redeliver"
    newest, _ = hooks.deliveries(endpoint_id=made["id"])
    of_both = {"since": first["created_at"], "state": "all"}
    for until, count in ((first["created_at"], 0), (newest["created_at"], 1), (None, 2)):
        limits = of_both | ({"until": until} if until else {})
        assert hooks.http.post(path, params=limits).json() == {"deliveries": count}


def test_no_such_delivery(hooks: Hooks) -> None:
    assert hooks.http.get("/v1/webhook-deliveries/whd_nonsense").status_code == 404
    path = "/v1/webhook-deliveries/whd_01jd4zk3v8e0x9m5q7r2t6w8ya"
    assert hooks.http.get(path).status_code == 404
    assert hooks.http.post(f"{path}/redeliver").status_code == 404

"""Links to one job's events that need no key: what they are good for, and what ends them."""

from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy.orm import Session, sessionmaker

from api.jobs.sse_routes import TICKETS
from shared.core.keys import parse_key
from tests.integration.api.conftest import uuid_of
from tests.integration.api.test_bad_input import check_problem
from tests.integration.api.test_events import following, parse
from tests.integration.api.test_polling import claim, fail, succeed
from tests.processes import ApiProcess, slowness

Submit = Callable[..., dict[str, Any]]
Database = sessionmaker[Session]


@pytest.fixture
def nobody(lone_api: ApiProcess) -> Any:
    """A client without a key."""
    with lone_api.client(None) as client:
        yield client


def ticket_for(client: httpx2.Client, job: dict[str, Any]) -> str:
    """The URL of a new ticket."""
    answer = client.post(f"{job['links']['self']}/stream-ticket")
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["url"]
    return url


def signed(client: httpx2.Client, job: dict[str, Any], end: datetime) -> str:
    """The URL of a ticket as whoever has the key could sign it."""
    key = parse_key(client.headers["authorization"].removeprefix("Bearer "))
    assert key is not None
    seconds = int(end.timestamp())
    mac = TICKETS.mac(key.secret_hash, uuid_of(job), seconds)
    return f"{job['links']['events']}?ticket=drt_{key.id}_{seconds}_{mac}"


@contextmanager
def open_with(client: httpx2.Client, url: str, last: str | None = None) -> Any:
    headers = {} if last is None else {"Last-Event-ID": last}
    with client.stream("GET", url, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        yield parse(answer.iter_lines())


@pytest.mark.long
def test_a_ticket_follows_a_job_to_its_end_without_a_key(
    http: httpx2.Client, nobody: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    made = http.post(f"{job['links']['self']}/stream-ticket").json()
    assert set(made) == {"url", "expires_at"}
    left = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=1) < left <= TICKETS.life
    with open_with(nobody, made["url"]) as events:
        assert next(events).data["id"] == job["id"]
        claim(database, job)
        assert next(events).data["state"] == "running"
    with open_with(nobody, made["url"], "1-0") as events:  # as a browser comes back
        assert next(events).data["state"] == "running"
        succeed(database, job)
        [end] = events
    assert end.data["state"] == "succeeded"
    seen = nobody.get(made["url"], headers={"Last-Event-ID": end.id})
    assert seen.status_code == 204


def test_a_ticket_is_good_for_the_events_of_its_job_and_nothing_else(
    http: httpx2.Client, nobody: httpx2.Client, submit: Submit
) -> None:
    job, other = submit(), submit()
    query = urlsplit(ticket_for(http, job)).query
    for path in (
        other["links"]["events"], job["links"]["self"], job["links"]["images"], "/v1/jobs",
    ):  # fmt: skip
        check_problem(nobody.get(f"{path}?{query}"), 401, "unauthenticated")
    check_problem(nobody.post(f"{job['links']['cancel']}?{query}"), 401, "unauthenticated")
    renewed = nobody.post(f"{job['links']['self']}/stream-ticket?{query}")
    check_problem(renewed, 401, "unauthenticated")


def test_a_changed_ticket_is_none(
    http: httpx2.Client, nobody: httpx2.Client, submit: Submit
) -> None:
    url = ticket_for(http, submit())
    head, _, ticket = url.partition("?ticket=")
    _, key_id, end, mac = ticket.split("_", 3)
    other_key = key_id[:-1] + ("a" if key_id[-1] != "a" else "b")
    other_mac = ("A" if mac[0] != "A" else "B") + mac[1:]
    for wrong in (
        "", "drt_", ticket[:-1], ticket + "A", ticket.replace("drt", "drk"),
        f"drt_{other_key}_{end}_{mac}", f"drt_{key_id}_{int(end) - 1}_{mac}",
        f"drt_{key_id}_{end}_{other_mac}",
    ):  # fmt: skip
        check_problem(nobody.get(f"{head}?ticket={wrong}"), 401, "unauthenticated")


def test_a_ticket_ends_and_nobody_can_sign_a_longer_one(
    http: httpx2.Client, nobody: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    claim(database, job)
    fail(database, job)
    now = datetime.now(UTC)
    ahead = timedelta(seconds=20)  # of this clock is that of the process which gave it
    for end in (now + TICKETS.life / 2, now + TICKETS.life + ahead):
        good = nobody.get(signed(http, job, end))
        assert good.status_code == 200, good.text
    for end in (now - timedelta(seconds=1), now + TICKETS.life * 2, now + timedelta(days=36500)):
        check_problem(nobody.get(signed(http, job, end)), 401, "unauthenticated")


def test_a_stream_ends_with_its_ticket(
    http: httpx2.Client, nobody: httpx2.Client, submit: Submit
) -> None:
    job = submit()
    end = datetime.now(UTC) + timedelta(seconds=2 + slowness())  # of which opening it may take some
    with open_with(nobody, signed(http, job, end)) as events:
        assert [event.data["state"] for event in events] == ["queued"]


def test_a_ticket_and_its_streams_end_with_the_key(
    http: httpx2.Client,
    lone_api: ApiProcess,
    nobody: httpx2.Client,
    submit: Submit,
    database: Database,
) -> None:
    made = http.post("/v1/keys", json={"name": "page", "scopes": ["jobs:read"]}).json()
    job = submit()
    with lone_api.client(made["key"]) as page, following(page, job) as by_key:
        url = ticket_for(page, job)
        with open_with(nobody, url) as by_ticket:
            assert next(by_key).data["state"] == next(by_ticket).data["state"] == "queued"
            assert http.delete(f"/v1/keys/{made['id']}").status_code == 204
            claim(database, job)  # The next thing to tell: it is told to neither.
            assert list(by_key) == list(by_ticket) == []
        check_problem(nobody.get(url), 401, "unauthenticated")


def test_a_key_that_may_not_read_jobs_gets_no_ticket(
    lone_api: ApiProcess, make_key: Callable[..., str], submit: Submit
) -> None:
    job = submit()
    with lone_api.client(make_key("lone", ("images",))) as client:
        refused = client.post(f"{job['links']['self']}/stream-ticket")
        check_problem(refused, 403, "insufficient_scope")


def test_asking_for_previews_is_a_change(
    lone_api: ApiProcess,
    nobody: httpx2.Client,
    make_key: Callable[..., str],
    submit: Submit,
    row_of: Callable[[str], Any],
) -> None:
    job = submit()
    with lone_api.client(make_key("lone", ("jobs:read",))) as reader:
        url = ticket_for(reader, job)
    check_problem(nobody.get(f"{url}&previews=1"), 403, "insufficient_scope")
    assert not row_of(job["id"]).previews


def test_the_end_of_a_ticket_is_never_after_that_of_its_key(
    http: httpx2.Client, lone_api: ApiProcess, submit: Submit
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2)
    fields = {"name": "brief", "scopes": ["jobs:read"], "expires_at": end.isoformat()}
    key = http.post("/v1/keys", json=fields).json()["key"]
    with lone_api.client(key) as client:
        made = client.post(f"{submit()['links']['self']}/stream-ticket").json()
    assert datetime.fromisoformat(made["expires_at"]) == end

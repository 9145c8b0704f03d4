"""Submissions that come together share a transaction, and each stays its own."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import literal, select, text
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.core.quotas import Quotas
from shared.images.queries import session_lock
from shared.jobs.models import Job
from tests.integration.api.conftest import uuid_of
from tests.processes import ApiProcess, wait_until

MakeKey = Callable[..., str]
MANY = 36


def post_all(
    api: ApiProcess, requests: list[tuple[str, dict[str, Any], str | None]]
) -> list[httpx2.Response]:
    """Send (key, body, idempotency key) all at once; again after a 503, as a client would."""
    clients = {key: api.client(key) for key, _, _ in requests}

    def send(request: tuple[str, dict[str, Any], str | None]) -> httpx2.Response:
        key, body, idempotency_key = request
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}

        def ask() -> httpx2.Response | None:
            json = {"prompt": "a", **body}
            answer = clients[key].post("/v1/jobs", json=json, headers=headers)
            return None if answer.status_code == 503 else answer

        answer: httpx2.Response = wait_until(ask, what="an answer")
        return answer

    with ThreadPoolExecutor(len(requests)) as threads, ExitStack() as stack:
        for client in clients.values():
            stack.enter_context(client)
        return list(threads.map(send, requests))


def transactions(database: sessionmaker[Session], answers: list[httpx2.Response]) -> int:
    """How many transactions have written these jobs."""
    ids = [uuid_of(answer.json()) for answer in answers]
    with database() as session:
        writers = text("SELECT count(DISTINCT xmin::text) FROM jobs WHERE id = ANY(:ids)")
        return int(session.execute(writers, {"ids": ids}).scalar_one())


@pytest.mark.long
def test_jobs_of_several_tenants_share_transactions_and_stay_apart(
    lone_api: ApiProcess, make_key: MakeKey, database: sessionmaker[Session]
) -> None:
    tenants = [f"grouped-{number}" for number in range(3)]
    keys = [make_key(tenant) for tenant in tenants]
    requests: list[tuple[str, dict[str, Any], str | None]] = [
        (
            keys[number % 3],
            {"session_id": f"s{number % 5}", "seed": number},
            f"key-{number % 8}" if number % 2 else None,
        )
        for number in range(MANY)
    ]
    with ThreadPoolExecutor(1) as thread:
        with lone_api.frozen():  # or each might come and go alone
            sending = thread.submit(post_all, lone_api, requests)
            wait_until(lambda: _unread_by(lone_api) == MANY, what="their arrival")
        answers = sending.result()
    done = [answer for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code != 202]
    # Of those with the same key of one tenant but another seed, one is accepted.
    codes = {answer.json()["code"] for answer in refused}
    assert codes == {"idempotency_key_reuse"}, lone_api.tail()
    assert transactions(database, done) < len(done), "none of them shared a transaction"
    for number, answer in enumerate(answers):
        if answer.status_code != 202:
            continue
        with lone_api.client(keys[number % 3]) as client:
            known = client.get(answer.json()["links"]["self"]).json()
        assert (known["seeds"], known["session_id"]) == ([number], f"s{number % 5}")
        with lone_api.client(keys[(number + 1) % 3]) as other:
            assert other.get(answer.json()["links"]["self"]).status_code == 404


def _unread_by(api: ApiProcess) -> int:
    """Connections on which a request has come that is not read yet (proc(5), net/tcp)."""
    port = f":{httpx2.URL(api.url).port:04X}"
    lines = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    of_port = [line.split() for line in lines if line.split()[1].endswith(port)]
    return sum(line[3] == "01" and not line[4].endswith(":00000000") for line in of_port)


@pytest.mark.long
def test_every_answer_is_replayed_byte_for_byte(lone_api: ApiProcess, make_key: MakeKey) -> None:
    key = make_key("replayed-together")
    requests: list[tuple[str, dict[str, Any], str | None]] = [
        (key, {"seed": number, "metadata": {"n": 'ü\\"🙂'}}, f"r{number}") for number in range(24)
    ]
    first = post_all(lone_api, requests)
    again = post_all(lone_api, requests)
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert {answer.headers["idempotency-replayed"] for answer in again} == {"true"}


def test_everything_that_a_job_can_have_is_written_as_it_is_alone(
    lone_api: ApiProcess, make_key: MakeKey, database: sessionmaker[Session]
) -> None:
    """A key with a quota goes alone; the rows differ in nothing but who and when."""
    body = {
        "prompt": "ein 'Zitat' \\ 🙂",
        "negative_prompt": "blurry",
        "seeds": [2**53 - 1, 0],
        "guidance_scale": 0.1 + 0.2,
        "metadata": {"k": 'v"\\'},
        "start_within": 9000.5,
        "finish_within": 9600,
        "webhook": {"url": "https://example.com/hook"},
        "previews": True,
        "hires": {"scale": 1.5},
    }
    rows = []
    for quotas in (None, Quotas(concurrent_jobs=1000)):
        [answer] = post_all(lone_api, [(make_key("alone-or-not", quotas=quotas), body, None)])
        assert answer.status_code == 202, answer.text
        with database() as session:
            row = session.get_one(Job, decode_id("job", answer.json()["id"]))
            shown = answer.json()
            assert row.created_at.isoformat()[:23] == shown["created_at"][:23]
            names = [attribute.key for attribute in Job.__mapper__.column_attrs]
            columns = {name: getattr(row, name) for name in names}
            columns["waits"] = row.start_deadline and row.start_deadline - row.created_at
            rows.append(columns)
    own = {"id", "api_key_id", "created_at", "start_deadline", "finish_deadline", "estimate"}
    for name, value in rows[0].items():
        if name == "waits":
            assert abs(value.total_seconds() - 9000.5) < 0.5
        elif name not in own:
            assert value == rows[1][name], name


def test_a_locked_session_holds_up_its_own_submissions_alone(
    lone_api: ApiProcess, make_key: MakeKey, database: sessionmaker[Session]
) -> None:
    """As while a session is deleted."""
    key, other = make_key("locks-a-session"), make_key("locks-nothing")
    with lone_api.client(key) as client:
        made = client.post("/v1/jobs", json={"prompt": "a", "session_id": "held"}).json()
    with database() as session:
        tenant = session.get_one(Job, uuid_of(made)).tenant_id
        lock = session_lock(literal(tenant), literal("held"))
        session.execute(
            select(text("pg_advisory_xact_lock(:n)")), {"n": session.scalar(select(lock))}
        )
        with ThreadPoolExecutor(1) as thread:
            held = thread.submit(post_all, lone_api, [(key, {"session_id": "held"}, None)] * 2)
            others = post_all(lone_api, [(other, {"seed": number}, None) for number in range(12)])
            assert {answer.status_code for answer in others} == {202}
            assert not held.done()
            session.rollback()
            codes = Counter(answer.status_code for answer in held.result())
    assert codes == {202: 2}


def test_a_place_in_the_queue_counts_those_of_the_group(
    lone_api: ApiProcess, make_key: MakeKey, database: sessionmaker[Session]
) -> None:
    by_itself = make_key("positions", quotas=Quotas(concurrent_jobs=1))
    [last] = (answer.json() for answer in post_all(lone_api, [(by_itself, {}, None)]))
    answers = post_all(lone_api, [(make_key("positions"), {}, None)] * 24)
    jobs = sorted((answer.json() for answer in answers), key=lambda job: job["id"])
    assert jobs[0]["queue_position"] == last["queue_position"] + 1
    together: dict[str, list[int]] = {}
    with database() as session:
        for job in jobs:
            writer = text("SELECT xmin::text FROM jobs WHERE id = :id")
            group = session.execute(writer, {"id": uuid_of(job)}).scalar_one()
            together.setdefault(group, []).append(job["queue_position"])
    for positions in together.values():
        assert positions == list(range(positions[0], positions[0] + len(positions)))

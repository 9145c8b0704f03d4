"""Looking at jobs: ETags, lists with cursors, cancel, retry, waiting, tenants."""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from shared.core.broker import append_event, events_key
from shared.jobs.models import Job
from shared.jobs.queries import claims, endings
from tests.integration.api.conftest import uuid_of
from tests.integration.api.test_bad_input import check_problem

Submit = Callable[..., dict[str, Any]]
Database = sessionmaker[Session]


def claim(database: Database, job: dict[str, Any]) -> None:
    """What a worker does first."""
    with database.begin() as session:
        statement = claims.claim(uuid_of(job), "w1", "cpu", timedelta(minutes=5))
        assert session.scalars(*statement).one().state == "running"


def fail(database: Database, job: dict[str, Any]) -> None:
    """What a worker does when the cause cannot pass."""
    with database.begin() as session:
        session.scalars(endings.fail(uuid_of(job), 1, "nan_output", "all black")).one()


def succeed(database: Database, job: dict[str, Any]) -> None:
    """What a worker does last (here: without images)."""
    with database.begin() as session:
        session.scalars(*endings.succeed(uuid_of(job), 1, 0.5)).one()


def tell(client: "redis.Redis", job: dict[str, Any], kind: str, **data: Any) -> str:
    """Append an event as a worker does; returns its id."""
    pipeline = client.pipeline()
    append_event(pipeline, uuid_of(job), kind, data)
    entry_id: bytes = pipeline.execute()[0]
    return entry_id.decode()


def test_an_unchanged_job_is_not_sent_again(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit()
    link = job["links"]["self"]
    claim(database, job)
    etag = http.get(link).headers["etag"]
    again = http.get(link, headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    tell(redis_client, job, "progress", image_index=0, step=2, steps=8, fraction=0.25)
    moved = http.get(link, headers={"If-None-Match": etag})
    assert moved.status_code == 200
    assert moved.json()["progress"] == {"step": 2, "steps": 8, "fraction": 0.25}
    etag = moved.headers["etag"]
    succeed(database, job)
    done = http.get(link, headers={"If-None-Match": etag})
    assert (done.status_code, done.json()["state"]) == (200, "succeeded")
    assert done.json()["progress"]["fraction"] == 1.0


def test_progress_of_several_images_is_that_of_the_job(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit(num_images=4)
    claim(database, job)
    tell(redis_client, job, "job", state="running", sequence=1)
    step = {"step": 4, "steps": 8, "fraction": 0.5}
    tell(redis_client, job, "progress", image_index=1, **step, job_fraction=0.375)
    tell(redis_client, job, "preview", image_index=1, content_type="image/webp", data="")
    progress = http.get(job["links"]["self"]).json()["progress"]
    assert progress == {"step": 4, "steps": 8, "fraction": 0.375}
    tell(redis_client, job, "progress", image_index=1, **step)  # A worker of an older release.
    assert http.get(job["links"]["self"]).json()["progress"]["fraction"] == 0.125
    tell(redis_client, job, "job", state="running", sequence=2)
    assert http.get(job["links"]["self"]).json()["progress"]["fraction"] == 0


def test_attempts_and_errors_are_shown(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    claim(database, job)
    fail(database, job)
    shown = http.get(job["links"]["self"]).json()
    assert shown["state"] == "failed"
    assert shown["error"] == {"code": "nan_output", "message": "all black"}
    [attempt] = shown["attempts"]
    assert (attempt["number"], attempt["worker"], attempt["device"]) == (1, "w1", "cpu")
    assert (attempt["outcome"], attempt["error"]["code"]) == ("failed", "nan_output")
    assert shown["metrics"]["queue_ms"] >= 0
    assert shown["metrics"]["run_ms"] >= 0
    assert shown["progress"] is None
    assert shown["queue_position"] is None


def test_the_place_in_the_queue_is_how_many_go_first(http: httpx2.Client, submit: Submit) -> None:
    # Of a model whose other jobs nobody ends meanwhile.
    first, second = submit(model="remote"), submit(model="remote")
    positions = [http.get(job["links"]["self"]).json()["queue_position"] for job in (first, second)]
    assert positions[1] == positions[0] + 1
    http.post(first["links"]["cancel"])
    assert http.get(second["links"]["self"]).json()["queue_position"] == positions[0]


def test_a_long_queue_is_counted_to_a_thousand(
    http: httpx2.Client, submit: Submit, database: sessionmaker[Session]
) -> None:
    made = submit()
    copied = ", ".join(column.name for column in Job.__table__.columns if column.name != "id")
    # Their ids are older than any other's.
    older = text(
        f"INSERT INTO jobs (id, {copied}) SELECT ('00000000-0000-7000-8000-'"  # noqa: S608
        f" || lpad(n::text, 12, '0'))::uuid, {copied} FROM jobs, generate_series(1, 1200) AS n"
        " WHERE id = :id"
    )
    with database.begin() as session:
        session.execute(older, {"id": uuid_of(made)})
    try:
        accepted = submit()
        polled = http.get(accepted["links"]["self"]).json()
        for job in (accepted, polled):
            assert (job["queue_position"], job["queue_position_exact"]) == (1000, False)
    finally:
        with database.begin() as session:
            session.execute(
                text("DELETE FROM jobs WHERE id < '00000000-0000-8000-8000-000000000000'")
            )
    polled = http.get(accepted["links"]["self"]).json()
    assert polled["queue_position"] < 1000
    assert polled["queue_position_exact"] is True


def test_cancel_can_be_repeated(http: httpx2.Client, submit: Submit) -> None:
    job = submit()
    for _ in range(2):
        answer = http.post(job["links"]["cancel"])
        assert answer.status_code == 200
        canceled = answer.json()
        assert (canceled["state"], canceled["cancel_requested"]) == ("canceled", True)
        assert canceled["finished_at"] is not None


def test_a_running_job_is_asked_to_stop(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    claim(database, job)
    for _ in range(2):
        asked = http.post(job["links"]["cancel"]).json()
        assert (asked["state"], asked["cancel_requested"]) == ("running", True)


def test_a_finished_job_cannot_be_canceled(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()
    claim(database, job)
    succeed(database, job)
    check_problem(http.post(job["links"]["cancel"]), 409, "job_not_cancelable")


def test_retry_keeps_the_seeds_and_the_attempts(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit(num_images=2)
    check_problem(http.post(f"{job['links']['self']}/retry"), 409, "job_not_retryable")
    claim(database, job)
    fail(database, job)
    answer = http.post(f"{job['links']['self']}/retry")
    assert answer.status_code == 202
    again = answer.json()
    assert (again["state"], again["error"]) == ("queued", None)
    assert again["seeds"] == job["seeds"]
    assert len(again["attempts"]) == 1


def test_lists_are_cut_into_pages_without_gaps(fresh: httpx2.Client, submit: Submit) -> None:
    made = [submit(fresh, session_id=f"s{i % 2}")["id"] for i in range(7)]
    seen: list[str] = []
    after = None
    while True:
        page = fresh.get(
            "/v1/jobs", params={"limit": 3, **({"after": after} if after else {})}
        ).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        after = page["next_cursor"]
    assert seen == made[::-1]


def test_lists_can_be_filtered(fresh: httpx2.Client, submit: Submit, database: Database) -> None:
    first, second, third = (submit(fresh, session_id=name) for name in ("a", "b", "b"))
    claim(database, second)
    fresh.post(third["links"]["cancel"])

    def ids(**params: Any) -> list[str]:
        answer = fresh.get("/v1/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return [job["id"] for job in answer.json()["data"]]

    assert ids(session_id="b") == [third["id"], second["id"]]
    assert ids(state="queued") == [first["id"]]
    assert ids(state=["queued", "running"]) == [second["id"], first["id"]]
    assert ids(session_id="b", state="canceled") == [third["id"]]
    assert ids(created_after=first["created_at"]) == [third["id"], second["id"]]
    assert ids(created_before=second["created_at"]) == [first["id"]]
    assert ids(session_id="nobody") == []


def test_cursors_cannot_be_made_up(
    fresh: httpx2.Client, stranger: httpx2.Client, submit: Submit
) -> None:
    for _ in range(3):
        submit(fresh)
    cursor = fresh.get("/v1/jobs?limit=1").json()["next_cursor"]
    flipped = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for client, wrong, filters in (
        (fresh, flipped, ""),
        (fresh, cursor[:-2], ""),
        (fresh, "!!", ""),
        (fresh, "", ""),
        (fresh, "ü" * 40, ""),
        (fresh, cursor, "&session_id=default"),
        (stranger, cursor, ""),
    ):
        answer = client.get(f"/v1/jobs?after={wrong}{filters}")
        check_problem(answer, 422, "malformed_cursor")


def test_a_row_of_another_tenant_does_not_exist(
    http: httpx2.Client, stranger: httpx2.Client, submit: Submit
) -> None:
    job = submit()
    here = f"/v1/jobs/{job['id']}"
    for method, path in (
        ("GET", here),
        ("GET", f"{here}/events"),
        ("GET", f"{here}/images"),
        ("POST", f"{here}/cancel"),
        ("POST", f"{here}/retry"),
    ):
        check_problem(stranger.request(method, path), 404, "not_found")
    assert job["id"] not in [seen["id"] for seen in stranger.get("/v1/jobs").json()["data"]]
    assert http.get(here).json()["state"] == "queued"


def test_waiting_ends_with_the_job(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit()

    def work() -> None:
        claim(database, job)
        tell(redis_client, job, "job", state="running", sequence=1)
        succeed(database, job)
        tell(redis_client, job, "job", state="succeeded", sequence=2)

    worker = threading.Timer(0.3, work)
    worker.start()
    started = time.monotonic()
    answer = http.get(job["links"]["self"], headers={"Prefer": "respond-async, wait=60"})
    assert time.monotonic() - started < 50
    assert answer.json()["state"] == "succeeded"
    assert answer.headers["preference-applied"] == "wait=60"
    worker.join()


def test_waiting_notices_an_end_that_redis_never_told(
    http: httpx2.Client, submit: Submit, database: Database
) -> None:
    job = submit()

    def work() -> None:
        claim(database, job)
        succeed(database, job)

    worker = threading.Timer(0.3, work)
    worker.start()
    answer = http.get(job["links"]["self"], headers={"Prefer": "wait=30"})
    assert answer.json()["state"] == "succeeded"
    worker.join()


def test_waiting_ends_after_its_seconds(http: httpx2.Client) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "a"}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert answer.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=x", "wait=-1", "return=minimal"])
def test_other_preferences_are_ignored(http: httpx2.Client, prefer: str) -> None:
    answer = http.post("/v1/jobs", json={"prompt": "a"}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


NO_PROGRESS: tuple[tuple[str, str], ...] = (
    ("progress", "no JSON"),
    ("progress", "[]"),
    ("progress", "{}"),
    ("progress", '{"step": "x", "steps": 8, "fraction": 0.5}'),
    ("progress", '{"step": 1, "steps": 8, "fraction": null}'),
    ("progress", '{"step": 1, "steps": 8, "fraction": 1e999}'),
    ("progress", "[" * 50_000),
    ("job", '{"sequence": "x"}'),
    ("prog\nress", "{}"),
)


def test_an_event_that_cannot_be_read_is_dropped(
    http: httpx2.Client, submit: Submit, database: Database, redis_client: "redis.Redis"
) -> None:
    job = submit()
    link = job["links"]["self"]
    claim(database, job)
    key = events_key(uuid_of(job))
    tell(redis_client, job, "progress", image_index=0, step=2, steps=8, fraction=0.25)
    for kind, data in NO_PROGRESS:
        redis_client.xadd(key, {"type": kind, "data": data})
        answer = http.get(link)
        assert answer.status_code == 200, (kind, data[:40], answer.text)
    redis_client.xadd(key, {b"\xff": b"\xff"})
    assert http.get(link).status_code == 200
    with http.stream("GET", job["links"]["events"]) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("event: job"))
        redis_client.xadd(key, {"type": "progress", "data": "no JSON"})
        tell(redis_client, job, "progress", image_index=0, step=4, steps=8, fraction=0.5)
        heard = next(line for line in lines if line.startswith("event: progress"))
        said = next(line for line in lines if line.startswith("data:"))
    assert (heard, json.loads(said.removeprefix("data:"))["step"]) == ("event: progress", 4)
    assert http.get(link).json()["progress"]["step"] == 4
    redis_client.set(key, "of another type")
    assert http.get(link).status_code == 200
    assert submit()["state"] == "queued"
    redis_client.delete(key)

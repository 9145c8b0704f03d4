"""Estimates over HTTP, learnt from real jobs; a dry run leaves nothing behind."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from deploy.tenants import create_key
from shared.core.ids import decode_id
from shared.core.settings import Settings
from shared.jobs.models import Job
from tests.processes import (
    QUICK_WORKER,
    ApiProcess,
    WorkerProcess,
    free_port,
    together,
    wait_until,
)

SECONDS = 0.5
"""Of an image of 10 steps on the model `steady`."""


@pytest.fixture(scope="module")
def http(
    settings: Settings, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of an API with these tests' models; a generate worker and a CPU worker run."""
    own = {
        **environment,
        "DARKROOM_MODELS_FILE": str(Path(__file__).with_name("models.toml")),
    }
    logs = tmp_path_factory.mktemp("eta")
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="estimates", name="estimates", scopes=["jobs"])
    api = ApiProcess(own, free_port(), key, logs / "api.log")
    gpu = WorkerProcess(
        {**own, "DARKROOM_WORKER_NAME": "eta-gpu"},
        ["generate", "--model", "steady"],
        logs / "gpu.log",
    )
    cpu = WorkerProcess(
        {**own, "DARKROOM_WORKER_NAME": "eta-cpu"},
        ["cpu"],
        logs / "cpu.log",
        module=QUICK_WORKER,
    )
    with together(api, gpu, cpu):
        yield api.http


def submit(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    body = {"prompt": "a red circle", "model": "steady", **fields}
    answer = http.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def ask(http: httpx2.Client, **fields: Any) -> httpx2.Response:
    """A dry run."""
    body = {"prompt": "a red circle", "model": "steady", **fields}
    return http.post("/v1/jobs", params={"dry_run": "1"}, json=body)


class Ahead(NamedTuple):
    """In how many seconds something is said to be done: at the moment of the question, which lies
    somewhere between sending it and having the answer."""

    at_least: float
    at_most: float


def ahead(http: httpx2.Client, **fields: Any) -> Ahead:
    """The p50 of a dry run, which has none for a second when Redis does not answer in time."""

    def look() -> Ahead | None:
        sent = datetime.now(UTC)
        eta = ask(http, **fields).json()["eta"]
        return _between(eta["p50"], sent) if eta else None

    found: Ahead = wait_until(look, 5, "an estimate")
    return found


def _between(moment: str, sent: datetime) -> Ahead:
    then = datetime.fromisoformat(moment)
    return Ahead((then - datetime.now(UTC)).total_seconds(), (then - sent).total_seconds())


def with_eta(http: httpx2.Client, job: dict[str, Any]) -> dict[str, Any]:
    """The job with its ETA, which it lacks for a second when Redis does not answer in time."""

    def look() -> dict[str, Any] | None:
        shown: dict[str, Any] = http.get(f"/v1/jobs/{job['id']}").json()
        return shown if shown["eta"] else None

    shown: dict[str, Any] = wait_until(look, 5, "an estimate")
    return shown


@pytest.fixture(scope="module")
def evidence(http: httpx2.Client) -> None:
    """Some finished jobs, and the snapshot that has learnt of them."""
    for job in [submit(http) for _ in range(3)]:
        answer = http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=60"}).json()
        assert answer["state"] == "succeeded"
    wait_until(lambda: ask(http).json()["eta"], 30, "an estimate")


@pytest.mark.long
def test_without_evidence_nothing_is_said(http: httpx2.Client) -> None:
    answer = ask(http, model="nobodys").json()
    assert (answer["valid"], answer["eta"]) == (True, None)
    assert [warning["code"] for warning in answer["warnings"]] == ["model_not_served"]


def test_a_dry_run_says_what_it_would_be_and_makes_nothing(
    http: httpx2.Client, evidence: None, database: sessionmaker[Session]
) -> None:
    def jobs() -> int:
        with database() as session:
            return session.scalar(select(func.count()).select_from(Job)) or 0

    before = jobs()
    answer = ask(http, seed=7, num_images=3, steps=20, width=128)
    assert answer.status_code == 200
    said = answer.json()
    eta = wait_until(lambda: ask(http, steps=20).json()["eta"], 5, "an estimate")
    assert said["cost"] == 128 * 64 * 20 * 3
    assert (said["num_images"], said["seeds"]) == (3, [7, 8, 9])
    assert ask(http).json()["seeds"] is None
    assert eta["p50"] <= eta["p90"]
    refused = ask(http, steps=501)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_failed")
    assert ask(http, init_image="x").status_code == 422
    assert ask(http, init_image="img_01jd4zk3v8e0x9m5q7r2t6w8ya").status_code == 404
    assert ask(http, webhook={"url": "ftp://x"}).status_code == 422
    assert jobs() == before


def test_more_work_takes_longer(http: httpx2.Client, evidence: None) -> None:
    short, long, many = ahead(http), ahead(http, steps=100), ahead(http, num_images=8)
    assert short.at_most > 0
    assert short.at_least < 20 * SECONDS
    assert long.at_most > 5 * short.at_least
    assert many.at_most > 2 * short.at_least


def test_a_job_has_an_eta_until_it_ends(
    http: httpx2.Client, evidence: None, database: sessionmaker[Session]
) -> None:
    jobs = [submit(http, steps=400) for _ in range(12)]  # two minutes for two rows
    first, last = (with_eta(http, jobs[i]) for i in (0, -1))
    assert last["eta"]["p50"] < last["eta"]["p90"]
    assert datetime.fromisoformat(last["eta"]["p50"]) > datetime.fromisoformat(first["eta"]["p50"])
    wait_until(
        lambda: http.get(f"/v1/jobs/{jobs[0]['id']}").json()["state"] == "running", 30, "a start"
    )
    assert with_eta(http, jobs[0])["state"] == "running"
    with database() as session:
        row = session.get_one(Job, decode_id("job", jobs[-1]["id"]))
    assert row.estimate is not None
    assert row.estimate["waits"]
    assert row.estimate["p50"] > SECONDS
    for job in jobs:
        http.post(f"/v1/jobs/{job['id']}/cancel")
    ended = wait_until(
        lambda: job if (job := http.get(f"/v1/jobs/{jobs[0]['id']}").json())["finished_at"] else 0,
        30,
        "the end",
    )
    assert ended["eta"] is None
    assert all(job["eta"] is None for job in http.get("/v1/jobs").json()["data"])


def test_a_tag_does_not_follow_every_moment_of_an_estimate(
    http: httpx2.Client, evidence: None
) -> None:
    """Or no poll would ever be answered 304. This job waits for two that take 20 s, or its own
    steps would change the tag faster than a busy machine asks twice."""
    jobs = [submit(http, steps=400) for _ in range(3)]
    path = f"/v1/jobs/{jobs[-1]['id']}"
    wait_until(lambda: http.get(path).json()["eta"], 30, "an estimate")

    def unchanged() -> bool:
        tag = http.get(path).headers["ETag"]
        return http.get(path, headers={"If-None-Match": tag}).status_code == 304

    assert wait_until(unchanged, 15, "a poll without news")
    for job in jobs:
        http.post(job["links"]["cancel"])

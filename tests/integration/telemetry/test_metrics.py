"""`/metrics` of every process: who may read it, what it counts, what it never shows."""

import json
from pathlib import Path

import httpx2
import pytest

from tests.integration.telemetry.conftest import Observed
from tests.processes import ApiProcess, free_port, wait_until

pytestmark = pytest.mark.timeout(600)  # the first test waits for three processes to start


@pytest.fixture(scope="module")
def job(observed: Observed) -> dict[str, object]:
    """A job that is done, so that there is something to count."""
    asked = {"prompt": "a counted house", "session_id": "counted", "model": "sim", "seeds": [1, 2]}
    answer = observed.api.http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=30"})
    done: dict[str, object] = answer.json()
    assert done["state"] == "succeeded", done
    return done


@pytest.mark.parametrize("name", ["api", "generate", "cpu"])
def test_only_the_token_opens_it(observed: Observed, name: str) -> None:
    process = getattr(observed, name)
    assert observed.scrape(process, None).status_code == 401
    assert observed.scrape(process, "a-token-of-somebody").status_code == 401
    answer = observed.scrape(process)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert observed.scrape(process, observed.api.key).status_code == 401


@pytest.mark.usefixtures("job")
def test_the_api_counts_requests_by_route(observed: Observed) -> None:
    count = observed.value(
        observed.api, "darkroom_http_requests_total", route="/v1/jobs", method="POST", status="202"
    )
    assert count is not None
    observed.api.http.get("/v1/jobs/job_01jd4zk3v8e0x9m5q7r2t6w8ya")
    observed.api.http.get("/no/such/path")
    for route in ("/v1/jobs/{job_id}", "unmatched"):
        found = observed.value(
            observed.api, "darkroom_http_requests_total", route=route, status="404"
        )
        assert found is not None, route
    problems = observed.value(observed.api, "darkroom_http_problems_total", code="not_found")
    assert problems is not None
    submitted = observed.value(
        observed.api, "darkroom_jobs_submitted_total", model="sim", lane="interactive"
    )
    assert submitted == count


@pytest.mark.usefixtures("job")
def test_the_gpu_worker_counts_attempts_and_the_engine(observed: Observed) -> None:
    worker = observed.generate
    for name, labels in {
        "darkroom_job_wait_seconds_count": {"lane": "interactive"},
        "darkroom_job_run_seconds_count": {"outcome": "succeeded"},
        "darkroom_images_total": {},
        "darkroom_gpu_seconds_total": {},
        "darkroom_engine_ticks_total": {},
        "darkroom_engine_rows_total": {"kind": "live"},
        "darkroom_engine_steps_total": {"lane": "interactive"},
        "darkroom_model_load_seconds_count": {"phase": "warm_up"},
    }.items():
        value = observed.value(worker, name, model="sim", **labels)
        assert value, name
    assert observed.value(worker, "darkroom_s3_request_seconds_count", operation="PutObject")
    assert observed.value(worker, "darkroom_worker_state") == 1
    assert observed.value(worker, "darkroom_engine_batch_rows", model="sim") == 4


def test_the_leading_cpu_worker_tells_of_duties_and_the_backlog(observed: Observed) -> None:
    worker = observed.cpu
    wait_until(
        lambda: observed.value(worker, "darkroom_queue_jobs", model="sim") is not None,
        what="the first measurement of the backlog",
    )
    assert observed.value(worker, "darkroom_dispatcher_leads") == 1
    assert observed.value(
        worker, "darkroom_duty_last_success_timestamp_seconds", duty="publish_lost"
    )
    assert observed.value(worker, "darkroom_duty_failures_total", duty="publish_lost") is None
    assert observed.value(worker, "darkroom_webhook_deliveries_due") == 0


def test_what_waits_is_counted_with_its_age(observed: Observed) -> None:
    asked = {"prompt": "nobody paints this", "session_id": "counted", "model": "demo"}
    before = observed.value(observed.cpu, "darkroom_queue_jobs", model="demo") or 0
    answer = observed.api.http.post("/v1/jobs", json=asked)
    job_id = answer.json()["id"]
    wait_until(
        lambda: observed.value(observed.cpu, "darkroom_queue_jobs", model="demo") == before + 1,
        what="the job in the backlog",
    )
    age = observed.value(
        observed.cpu, "darkroom_queue_oldest_age_seconds", model="demo", lane="interactive"
    )
    assert age is not None
    assert age > 0
    observed.api.http.post(f"/v1/jobs/{job_id}/cancel")


def test_nothing_of_a_tenant_is_in_a_label(observed: Observed, job: dict[str, object]) -> None:
    secrets = [str(job["id"]), "counted", observed.api.key.split("_")[1], "observed"]
    for process in (observed.api, observed.generate, observed.cpu):
        labels = json.dumps([sample.labels for sample in observed.samples(process)])
        assert [secret for secret in secrets if secret in labels] == []


def test_other_paths_of_a_workers_listener_do_not_exist(observed: Observed) -> None:
    observed.scrape(observed.cpu)
    url = str(observed.scrape(observed.cpu).url)
    assert httpx2.get(url.replace("/metrics", "/"), trust_env=False).status_code == 404
    assert httpx2.post(url, trust_env=False).status_code == 404


def test_without_a_token_the_api_tells_them_on_a_port_of_its_own(
    environment: dict[str, str], api: ApiProcess, tmp_path: Path
) -> None:
    port = free_port()
    settings = {**environment, "DARKROOM_METRICS_PORT": str(port)}
    with ApiProcess(settings, free_port(), api.key, tmp_path / "log") as own:
        # A proxy on this host may add no header at all, and makes a neighbour of everybody.
        answer = own.client(None).get("/metrics")
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"
        told = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=20)
        assert "darkroom_http_requests_total" in told.text

"""`/metrics` of every process: who may read it, what it counts, what it never shows."""

import json
from pathlib import Path
from uuid import UUID

import httpx2
import pytest

from shared.core.ids import decode_id
from tests.integration.telemetry.conftest import Observed, log_events
from tests.processes import ApiProcess, WorkerProcess, free_port, wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.timeout(600)  # the first test waits for three processes to start


@pytest.fixture(scope="module")
def job(observed: Observed) -> dict[str, object]:
    """A job that is done, so that there is something to count."""
    asked = {"prompt": "a counted house", "session_id": "counted", "model": "sim", "seeds": [1, 2]}
    answer = observed.api.http.post("/v1/jobs", json=asked, headers={"Prefer": "wait=60"})
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
    # Refused before it is routed.
    early = {"Authorization": "Bearer drk_nobody", "Prefer": "wait=1"}
    assert observed.api.http.get("/v1/jobs/job_1", headers=early).status_code == 401
    found = observed.value(
        observed.api, "darkroom_http_requests_total", route="/v1/jobs/{job_id}", status="401"
    )
    assert found is not None
    problems = observed.value(observed.api, "darkroom_http_problems_total", code="not_found")
    assert problems is not None
    submitted = observed.value(
        observed.api, "darkroom_jobs_submitted_total", model="sim", queue_class="interactive"
    )
    assert submitted == count


@pytest.mark.usefixtures("job")
def test_the_gpu_worker_counts_attempts_and_the_engine(observed: Observed) -> None:
    worker = observed.generate
    for name, labels in {
        "darkroom_job_wait_seconds_count": {"queue_class": "interactive"},
        "darkroom_job_run_seconds_count": {"outcome": "succeeded"},
        "darkroom_images_total": {},
        "darkroom_gpu_seconds_total": {},
        "darkroom_engine_ticks_total": {},
        "darkroom_engine_rows_total": {"kind": "live"},
        "darkroom_engine_steps_total": {"queue_class": "interactive"},
        "darkroom_model_load_seconds_count": {"phase": "warm_up"},
    }.items():
        # An attempt is measured when it is over, a little after its job has its images.
        wait_until(
            lambda name=name, labels=labels: observed.value(worker, name, model="sim", **labels),
            what=name,
        )
    assert observed.value(worker, "darkroom_s3_request_seconds_count", operation="PutObject")
    assert observed.value(worker, "darkroom_worker_state") == 1
    assert observed.value(worker, "darkroom_engine_batch_size", model="sim") == 4


def test_the_leading_cpu_worker_tells_of_duties_and_the_backlog(observed: Observed) -> None:
    worker = observed.cpu
    wait_until(
        lambda: observed.value(worker, "darkroom_queue_jobs", model="sim") is not None,
        what="the first measurement of the backlog",
    )
    assert observed.value(worker, "darkroom_dispatcher_leads") == 1
    wait_until(
        lambda: observed.value(
            worker, "darkroom_periodic_task_last_success_timestamp_seconds", task="publish_lost"
        ),
        what="the end of a periodic task",
    )
    failures = observed.value(worker, "darkroom_periodic_task_failures_total", task="publish_lost")
    assert failures == 0
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
        observed.cpu, "darkroom_queue_oldest_age_seconds", model="demo", queue_class="interactive"
    )
    assert age is not None
    assert age > 0
    observed.api.http.post(f"/v1/jobs/{job_id}/cancel")


def test_nothing_of_a_tenant_is_in_a_label(observed: Observed, job: dict[str, object]) -> None:
    secrets = [str(job["id"]), "counted", observed.api.key.split("_")[1], "observed"]
    for process in (observed.api, observed.generate, observed.cpu):
        labels = json.dumps([sample.labels for sample in observed.samples(process)])
        assert [secret for secret in secrets if secret in labels] == []


def test_alerts_see_the_first_event_of_a_kind(observed: Observed) -> None:
    """Each of these series is there before anything has gone wrong."""
    workers, sim = (observed.cpu, observed.generate), {"model": "sim"}
    refused = {"operation": "PutObject", "kind": "refused"}
    search = {"route": "/v1/search", "method": "POST", "status": "503"}
    for name, processes, labels in (
        ("darkroom_leases_lost_total", workers, sim),
        ("darkroom_job_failures_total", workers, sim | {"code": "device_lost"}),
        ("darkroom_database_errors_total", workers, {"kind": "read_only"}),
        ("darkroom_s3_errors_total", workers, refused),
        ("darkroom_job_run_seconds_count", workers[1:], sim | {"outcome": "failed"}),
        ("darkroom_webhook_attempts_total", workers[:1], {"outcome": "give_up"}),
        ("darkroom_webhook_attempts_total", workers[:1], {"outcome": "gone", "code": "gone"}),
        ("darkroom_webhook_attempt_seconds_count", workers[:1], {"outcome": "give_up"}),
        ("darkroom_job_wait_seconds_count", workers[1:], sim | {"queue_class": "bulk"}),
        ("darkroom_engine_steps_total", workers[1:], sim | {"queue_class": "bulk"}),
        ("darkroom_images_total", workers, sim),
        ("darkroom_s3_request_seconds_count", workers, {"operation": "DeleteObjects"}),
        ("darkroom_jobs_submitted_total", (observed.api,), sim | {"queue_class": "bulk"}),
        ("darkroom_search_seconds_count", (observed.api,), {"stage": "embedding"}),
        ("darkroom_http_requests_total", (observed.api,), search),
        ("darkroom_http_problems_total", (observed.api,), {"code": "disk_full"}),
    ):
        for process in processes:
            assert observed.value(process, name, **labels) is not None, name


def test_a_worker_is_alive_but_not_ready_while_it_loads_its_model(
    observed: Observed, tmp_path: Path
) -> None:
    models = tmp_path / "models.toml"
    source = "simulated:tick=0.002&row=0.0005&load=3600"  # longer than this test runs
    models.write_text(f'[[model]]\nname = "slow"\nsource = "{source}"\nmax_batch_size = 4\n')
    own = {**observed.environment, "DARKROOM_MODELS_FILE": str(models)}
    loading = WorkerProcess(own, ["generate", "--model", "slow"], tmp_path / "log")
    loading.start()
    try:
        loading.wait_for_log("metrics_listen")
        wait_until(
            lambda: observed.value(loading, "darkroom_worker_state", state="warming") == 1,
            what="the beginning of its warm-up",
        )
        probes = ("/healthz", "/startupz", "/readyz")
        assert [observed.probe(loading, path) for path in probes] == [200, 503, 503]
        assert [observed.probe(observed.generate, path) for path in probes] == [200, 200, 200]
    finally:
        loading.kill()


def test_other_paths_of_a_workers_listener_do_not_exist(observed: Observed) -> None:
    observed.scrape(observed.cpu)
    url = str(observed.scrape(observed.cpu).url)
    with httpx2.Client(trust_env=False, timeout=20) as http:
        assert http.get(url.replace("/metrics", "/")).status_code == 404
        assert http.post(url).status_code == 404


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


# --- One line an event, with the ids that lead from a request to its job's attempts ---


def test_a_request_is_found_again_in_the_lines_of_its_job(observed: Observed) -> None:
    request_id = "a-request-of-this-test"
    with Receiver() as receiver:
        answer = observed.api.http.post(
            "/v1/jobs",
            json={
                "prompt": "a logged house",
                "session_id": "logged",
                "model": "sim",
                "webhook": {"url": receiver.url, "events": ["job.succeeded"]},
            },
            headers={"X-Request-Id": request_id, "Prefer": "wait=60"},
        )
        receiver.wait()
    job_id = str(decode_id("job", answer.json()["id"]))

    def ended() -> bool:
        return any(
            event["event"] == "job_succeeded" and event.get("job_id") == job_id
            for event in log_events(observed.generate)
        )

    wait_until(ended, what="the end of the job in the log")
    lines = [event for event in log_events(observed.generate) if event.get("job_id") == job_id]
    assert {"job_started", "job_succeeded"} <= {line["event"] for line in lines}
    for line in lines:
        assert line["request_id"] == request_id
        assert line["attempt"] == 1
        assert UUID(line["tenant_id"])
        assert len(line["trace_id"]) == 32
        assert line["level"]
        assert line["timestamp"].endswith("Z")
    trace_ids = {line["trace_id"] for line in lines}
    assert len(trace_ids) == 1
    attempts = wait_until(
        lambda: [
            event
            for event in log_events(observed.cpu)
            if event["event"] == "webhook_attempt" and event.get("trace_id") in trace_ids
        ],
        what="the webhook in the log",
    )
    assert all(event["delivery_id"].startswith("whd_") for event in attempts)


def test_every_line_of_every_process_is_an_event(observed: Observed) -> None:
    for process in (observed.api, observed.generate, observed.cpu):
        # `log_events` fails on a line that is none.
        assert all("event" in event and "level" in event for event in log_events(process))

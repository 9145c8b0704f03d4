"""Prompts that a filter refuses, marks, hangs over: at every door, before anything is kept."""

import json
import signal
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from shared.jobs.models import Job
from tests.processes import ApiProcess, WorkerProcess, wait_until
from tests.receiver import Receiver


def post(api: ApiProcess, prompt: str, **fields: Any) -> httpx2.Response:
    headers = fields.pop("headers", {})
    params = fields.pop("params", {})
    body = {"prompt": prompt, "seed": 1, **fields}
    return api.http.post("/v1/jobs", json=body, headers=headers, params=params)


def jobs_of(database: sessionmaker[Session], prompt: str) -> int:
    with database() as session:
        count = select(func.count()).select_from(Job).where(Job.prompt.contains(prompt))
        return session.scalars(count).one()


def test_a_refused_prompt_becomes_no_job(
    filtered_api: ApiProcess, database: sessionmaker[Session]
) -> None:
    for text, name in (
        ("refuse prompt, says the toy", "obedient"),
        ("a still life with Forbidden Fruit", "word_list"),
    ):
        for params in ({}, {"dry_run": "true"}):
            refused = post(filtered_api, text, params=params)
            assert refused.status_code == 422, refused.text
            problem = refused.json()
            assert problem["code"] == "refused_by_filter"
            [error] = problem["errors"]
            assert (error["pointer"], error["code"]) == ("/prompt", name)
            assert error["message"] == problem["detail"]
        assert jobs_of(database, text) == 0
    # What the images should not show is no reason to refuse.
    asked = post(filtered_api, "an apple", negative_prompt="forbidden fruit")
    assert asked.status_code == 202


def test_other_peoples_apis_refuse_in_their_own_words(filtered_api: ApiProcess) -> None:
    http, text = filtered_api.http, "refuse prompt at every door"
    openai = http.post("/openai/v1/images/generations", json={"prompt": text})
    assert openai.status_code == 400
    error = openai.json()["error"]
    assert (error["code"], error["param"]) == ("content_policy_violation", "prompt")
    assert error["type"] == "invalid_request_error"
    a1111 = http.post("/sdapi/v1/txt2img", json={"prompt": text})
    assert (a1111.status_code, a1111.json()["error"]) == (422, "HTTPException")
    hub = http.post("/hf", json={"inputs": text})
    assert (hub.status_code, hub.json()["code"]) == (422, "refused_by_filter")


def test_a_marked_prompt_is_accepted_with_a_warning(filtered_api: ApiProcess) -> None:
    accepted = post(filtered_api, "mark prompt, please")
    assert accepted.status_code == 202
    [mark] = [one for one in accepted.json()["warnings"] if one["code"] == "marked_by_filter"]
    assert mark["message"] == "obedient: The prompt asks for it."
    planned = post(filtered_api, "mark prompt, please", params={"dry_run": "true"}).json()
    assert mark in planned["warnings"]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["hang", "crash", "raise"])
def test_a_filter_that_fails_lets_nothing_pass(
    filtered_api: ApiProcess, database: sessionmaker[Session], fault: str
) -> None:
    text = f"{fault} prompt, now"
    failed = post(filtered_api, text)
    assert failed.status_code == 503, failed.text
    assert failed.json()["code"] == "filter_unavailable"
    assert int(failed.headers["retry-after"]) > 0
    assert jobs_of(database, text) == 0
    assert post(filtered_api, f"fine after {fault}").status_code == 202


def test_an_accepted_submission_is_replayed_whatever_filters_say_by_then(
    filtered_api: ApiProcess, denied: Path
) -> None:
    text, key = "a prompt that will be denied", {"Idempotency-Key": "denied-later"}
    first = post(filtered_api, text, headers=key)
    assert first.status_code == 202
    denied.write_text("will be denied")
    try:
        assert post(filtered_api, text).status_code == 422
        again = post(filtered_api, text, headers=key)
        assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
        assert again.headers["idempotency-replayed"] == "true"
    finally:
        denied.unlink()


def test_an_image_is_not_made_again_or_larger_from_a_prompt_that_is_refused_by_now(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess, denied: Path
) -> None:
    job = post(filtered_api, "once tolerated", headers={"Prefer": "wait=60"}).json()
    image = job["images"][0]["id"]
    denied.write_text("once tolerated")
    try:
        for path in ("reproduce", "upscale"):
            refused = filtered_api.http.post(f"/v1/images/{image}/{path}", json={})
            assert (refused.status_code, refused.json()["code"]) == (422, "refused_by_filter")
    finally:
        denied.unlink()
    made = filtered_api.http.post(f"/v1/images/{image}/reproduce", headers={"Prefer": "wait=60"})
    assert made.json()["verdict"] == "identical", made.text


def test_the_making_again_that_was_begun_goes_on_whatever_filters_say_by_then(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess, denied: Path
) -> None:
    job = post(filtered_api, "tolerated a while", headers={"Prefer": "wait=60"}).json()
    path = f"/v1/images/{job['images'][0]['id']}/reproduce"
    filtered_worker.send(signal.SIGSTOP)
    try:
        begun = filtered_api.http.post(path, headers={"Prefer": "wait=0"})
        assert begun.status_code == 202, begun.text
        denied.write_text("tolerated a while")
        again = filtered_api.http.post(path, headers={"Prefer": "wait=0"})
        assert again.status_code == 202, again.text
        assert again.json()["job"]["id"] == begun.json()["job"]["id"]
    finally:
        denied.unlink(missing_ok=True)
        filtered_worker.send(signal.SIGCONT)


def test_lines_of_a_batch_fail_one_by_one(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> None:
    http = filtered_api.http
    lines = [
        {"custom_id": "good", "prompt": "a good line"},
        {"custom_id": "bad", "prompt": "refuse prompt in a line"},
        {"custom_id": "odd", "prompt": "mark prompt in a line"},
        {"custom_id": "many", "prompt": "an apple or {pear|forbidden fruit}"},
    ]
    body = {"defaults": {"model": "seen", "steps": 2}, "items": lines, "templates": True}
    planned = http.post("/v1/batches", params={"dry_run": "true"}, json=body).json()
    assert (planned["accepted"], planned["jobs"], planned["refused_jobs"]) == (True, 5, 2)
    with Receiver() as receiver:
        webhook = {"url": f"{receiver.url}/b", "events": ["job.failed", "job.succeeded"]}
        accepted = http.post("/v1/batches", json=body | {"webhook": webhook})
        assert accepted.status_code == 202, accepted.text
        batch = accepted.json()
        assert (batch["counts"]["failed"], batch["counts"]["total"]) == (2, 5)
        path = f"/v1/batches/{batch['id']}"
        wait_until(lambda: http.get(path).json()["finished_at"], 60, "the end of the batch")
        assert http.get(path).json()["state"] == "partial"
        results = {
            one["custom_id"]: one
            for one in map(json.loads, http.get(f"{path}/results").text.splitlines())
        }
        assert {name: one["state"] for name, one in results.items()} == {
            "good": "succeeded",
            "bad": "failed",
            "odd": "succeeded",
            "many-1": "succeeded",
            "many-2": "failed",
        }
        assert results["bad"]["error"]["code"] == "refused_by_filter"
        assert results["bad"]["error"]["message"] == "obedient: The prompt asks for it."
        wait_until(lambda: len(receiver.received) >= 5, 60, "the webhooks")
        told = {one.message["data"]["custom_id"]: one.message for one in receiver.received}
        assert told["bad"]["type"] == "job.failed"
    odd = http.get(f"/v1/jobs/{results['odd']['job_id']}").json()
    assert [one["code"] for one in odd["warnings"]] == ["marked_by_filter"]
    # A retry would bring it past the filters.
    bad = http.post(f"/v1/jobs/{results['bad']['job_id']}/retry")
    assert (bad.status_code, bad.json()["code"]) == (409, "job_not_retryable")
    again = http.post(f"{path}/retry-failed")
    assert (again.status_code, again.json()["code"]) == (409, "nothing_to_retry")


def test_of_what_failed_in_a_batch_no_refused_prompt_is_tried_again(
    filtered_api: ApiProcess, filtered_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> None:
    """A refused image is: the toy counts on and lets the next one pass."""
    http = filtered_api.http
    lines = [
        {"custom_id": "image", "prompt": "refuse images 0 of a line"},
        {"custom_id": "prompt", "prompt": "refuse prompt of a line"},
    ]
    body = {"defaults": {"model": "seen", "steps": 2}, "items": lines}
    path = f"/v1/batches/{http.post('/v1/batches', json=body).json()['id']}"

    def is_in(state: str) -> bool:
        return bool(http.get(path).json()["state"] == state)

    wait_until(lambda: is_in("failed"), 60, "the end of the batch")
    assert http.post(f"{path}/retry-failed").json()["retried"] == 1
    wait_until(lambda: is_in("partial"), 60, "another end")
    [error] = map(json.loads, http.get(f"{path}/errors").text.splitlines())
    assert (error["custom_id"], error["code"]) == ("prompt", "refused_by_filter")


def test_a_batch_whose_filter_fails_is_not_accepted(filtered_api: ApiProcess) -> None:
    items = [{"prompt": "a good line"}, {"prompt": "crash prompt"}]
    answer = filtered_api.http.post("/v1/batches", json={"items": items})
    assert (answer.status_code, answer.json()["code"]) == (503, "filter_unavailable")


def test_without_filters_there_is_no_process(
    api: ApiProcess, generate_worker: WorkerProcess, filtered_api: ApiProcess
) -> None:
    assert post(api, "a house").status_code == 202
    for process in (api, generate_worker):
        children = psutil.Process(process.child.pid).children()
        assert not [one for one in children if "filter_process" in " ".join(one.cmdline())]
    post(filtered_api, "a house")
    children = psutil.Process(filtered_api.child.pid).children()
    assert [one for one in children if "filter_process" in " ".join(one.cmdline())]

"""Weighted and long prompts of jobs, on a real model: image, receipt, warning, reproduction."""

from typing import Any

from tests.integration.run_job.test_loras import finished, submit
from tests.processes import ApiProcess, WorkerProcess

MANY = " ".join("a" * 100)
SMALL: dict[str, Any] = {"model": "demo", "steps": 2, "width": 64, "height": 64}


def test_weights_and_long_prompts_change_the_image_and_are_made_again(
    api: ApiProcess, demo_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> None:
    weighted = {**SMALL, "prompt": "a (red:1.6) circle", "prompt_syntax": "weighted"}
    plain = {**SMALL, "prompt": "a red circle"}
    long = {**SMALL, "prompt": f"{MANY} red", "negative_prompt": "blue", "long_prompt": True}
    short = {**SMALL, "prompt": f"{MANY} red"}
    jobs = [finished(api, submit(api, **body), 120) for body in (plain, weighted, short, long)]
    assert [job["state"] for job in jobs] == ["succeeded"] * 4
    assert len({job["images"][0]["sha256"] for job in jobs}) == 4
    assert [[warning["code"] for warning in job["warnings"]] for job in jobs] == [
        [],
        [],
        ["prompt_truncated"],
        [],
    ]
    for job in (jobs[1], jobs[3]):
        image = f"/v1/images/{job['images'][0]['id']}"
        again = finished(
            api,
            api.http.post(f"{image}/reproduce", headers={"Prefer": "wait=60"}).json()["job"],
            120,
        )
        result = api.http.post(f"{image}/reproduce", params={"job": again["id"]}).json()
        assert result["verdict"] == "identical", result["reason"]

"""Options of a job (`api.jobs.options`): over every way in, on record, and made again."""

import json
from typing import Any

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.images.models import Image
from shared.jobs.models import Job
from tests.integration.api.images.test_images import read, with_receipt
from tests.integration.api.test_bad_input import check_problem
from tests.integration.batches.client import jsonl, make, post_file
from tests.processes import ApiProcess

OPTIONS = {"prompt_syntax": "weighted", "long_prompt": True}
PLAIN = {"prompt_syntax": "plain", "long_prompt": False}
BODY = {"prompt": "a (red:1.2) circle", "model": "sim", "seed": 3}
WAIT = {"Prefer": "wait=60"}


def options_in(document: dict[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in OPTIONS if name in document}


@pytest.fixture(scope="module")
def job(http: httpx2.Client) -> dict[str, Any]:
    made: dict[str, Any] = http.post("/v1/jobs", json={**BODY, **OPTIONS}, headers=WAIT).json()
    assert made["state"] == "succeeded", made
    return made


def test_a_job_and_its_dry_run_say_them_and_the_row_keeps_what_differs(
    http: httpx2.Client, job: dict[str, Any], database: sessionmaker[Session]
) -> None:
    plain = http.post("/v1/jobs", json={**BODY, **PLAIN}, headers=WAIT).json()
    assert (options_in(job), options_in(plain)) == (OPTIONS, PLAIN)
    listed = http.get("/v1/jobs").json()["data"]
    assert OPTIONS in [options_in(each) for each in listed]
    tried = http.post("/v1/jobs?dry_run=true", json={**BODY, **OPTIONS}).json()
    assert options_in(tried) == OPTIONS
    with database() as session:
        ids = [decode_id("job", each["id"]) for each in (job, plain)]
        assert [session.get_one(Job, each).options for each in ids] == [OPTIONS, {}]


def test_the_receipt_says_them_and_they_are_made_again(
    http: httpx2.Client, job: dict[str, Any]
) -> None:
    image = f"/v1/images/{job['images'][0]['id']}"
    receipt = http.get(f"{image}/receipt").json()
    assert options_in(receipt) == OPTIONS
    assert receipt["prompt_grammar"] == "a1111-1"
    assert receipt["prompt"] == BODY["prompt"]
    result = http.post(f"{image}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert (result["verdict"], options_in(result["job"])) == ("identical", OPTIONS)
    found = http.post("/v1/images/inspect", files=with_receipt(json.dumps(receipt))).json()
    assert options_in(found["job"]) == OPTIONS
    assert options_in(http.post("/v1/jobs", json=found["job"]).json()) == OPTIONS


@pytest.mark.parametrize("version", [1, 2])
def test_a_receipt_from_before_there_were_options_is_made_again(
    http: httpx2.Client, database: sessionmaker[Session], version: int
) -> None:
    made = http.post("/v1/jobs", json=BODY, headers=WAIT).json()
    image = f"/v1/images/{made['images'][0]['id']}"
    with database.begin() as session:
        row = session.get_one(Image, decode_id("img", made["images"][0]["id"]))
        assert options_in(row.receipt) == {}
        old = dict(row.receipt) | {"receipt_version": version}
        old["rows" if version == 1 else "batch_size"] = old.pop("batch_size")
        row.receipt = old
    result = http.post(f"{image}/reproduce", headers={"Prefer": "wait=60"}).json()
    assert (result["verdict"], options_in(result["job"])) == ("identical", PLAIN)
    found = http.post("/v1/images/inspect", files=with_receipt(json.dumps(old))).json()
    assert found["job"]["prompt"] == BODY["prompt"]
    assert options_in(found["job"]) == {}


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_files_quality_is_on_record_and_made_again(
    http: httpx2.Client, output_format: str
) -> None:
    body = {**BODY, "output_format": output_format, "width": 256, "height": 256}
    usual = http.post("/v1/jobs", json=body, headers=WAIT).json()
    small = http.post("/v1/jobs", json={**body, "output_quality": 30}, headers=WAIT).json()
    assert (usual["output_quality"], small["output_quality"]) == (None, 30)
    sizes = [job["images"][0]["bytes"] for job in (usual, small)]
    assert sizes[1] < 0.7 * sizes[0]
    image = f"/v1/images/{small['images'][0]['id']}"
    assert http.get(f"{image}/receipt").json()["output_quality"] == 30
    result = http.post(f"{image}/reproduce", headers=WAIT).json()
    assert (result["verdict"], result["job"]["output_quality"]) == ("identical", 30)
    found = http.post("/v1/images/inspect", files={"file": ("a", read(http, small))}).json()
    assert (found["job"]["output_format"], found["job"]["output_quality"]) == (output_format, 30)
    larger = http.post(f"{image}/upscale", json={}, headers=WAIT).json()
    assert larger["output_quality"] == 30


def test_another_option_is_another_request(http: httpx2.Client) -> None:
    key = {"Idempotency-Key": "options"}
    first = http.post("/v1/jobs", json={**BODY, "long_prompt": True}, headers=key)
    again = http.post("/v1/jobs", json={**BODY, "long_prompt": True}, headers=key)
    assert again.content == first.content
    check_problem(http.post("/v1/jobs", json=BODY, headers=key), 422, "idempotency_key_reuse")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"prompt_syntax": "compel"}, "/prompt_syntax"),
        ({"prompt_syntax": None}, "/prompt_syntax"),
        ({"long_prompt": "yes"}, "/long_prompt"),
        ({"options": {"long_prompt": True}}, "/options"),
        ({"output_quality": 50}, "/output_quality"),
        ({"output_quality": 0, "output_format": "jpeg"}, "/output_quality"),
        ({"output_quality": 101, "output_format": "webp"}, "/output_quality"),
        ({"prompt": "a (red circle", "prompt_syntax": "weighted"}, "/prompt"),
        ({"negative_prompt": "[a", "prompt_syntax": "weighted"}, "/negative_prompt"),
        ({"prompt": "a BREAK b", "prompt_syntax": "weighted"}, "/prompt"),
    ],
)
def test_bad_options_are_refused_with_a_pointer(
    http: httpx2.Client, fields: dict[str, Any], pointer: str
) -> None:
    problem = http.post("/v1/jobs", json={**BODY, **fields}).json()
    assert problem["status"] == 422
    assert pointer in [error["pointer"] for error in problem["errors"]]


def test_lines_defaults_matrices_and_tables_may_have_them(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    lines = [
        {"prompt": "a"},
        {"prompt": "b", "long_prompt": True},
        {"prompt": "c", "matrix": {"prompt_syntax": ["plain", "weighted"]}},
    ]
    given = {"prompt_syntax": "weighted"}
    batch = make(api, lines, defaults={"model": "sim", **given})
    assert options_of(database, batch) == [given, OPTIONS, {}, given]
    page = api.http.get(f"/v1/batches/{batch['id']}/items").json()["data"]
    assert sorted(map(options_in, page), key=str) == sorted(
        [{**PLAIN, **given}, OPTIONS, PLAIN, {**PLAIN, **given}], key=str
    )
    table = b"prompt,prompt_syntax,long_prompt\na,weighted,TRUE\nb,,false\nc,plain,true\n"
    batch = post_file(api.http, table, "a.csv", defaults={"model": "sim"}).json()
    assert options_of(database, batch) == [OPTIONS, {}, {"long_prompt": True}]
    bad = [{"prompt": "a", "prompt_syntax": "x"}, {"prompt": "(a", "prompt_syntax": "weighted"}]
    errors = post_file(api.http, jsonl(bad), "a.jsonl", defaults={"model": "sim"}).json()["errors"]
    assert [error["pointer"] for error in errors] == ["/prompt_syntax", "/prompt"]
    assert errors[1]["code"] == "unclosed_weight"


def options_of(database: sessionmaker[Session], batch: dict[str, Any]) -> list[dict[str, Any]]:
    with database() as session:
        statement = select(Job).where(Job.batch_id == decode_id("batch", batch["id"]))
        return [job.options for job in session.scalars(statement.order_by(Job.id))]

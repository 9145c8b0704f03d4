"""POST /v1/batches: whole or not at all, with every error named."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from shared.batches.models import Batch
from shared.core.ids import decode_id
from shared.jobs.models import Job
from tests.images import png
from tests.integration.batches import client
from tests.integration.batches.client import get, jsonl, lines_of, post_file
from tests.processes import ApiProcess

GOOD = {"prompt": "a red hat"}
HELD = {"model": "held"}
"""No worker takes these jobs, whoever else has started workers."""


@pytest.fixture(autouse=True)
def _end_what_was_made(api: ApiProcess) -> Any:
    """No worker is needed here; what was accepted must not run in other tests."""
    yield
    for batch in api.http.get("/v1/batches", params={"state": "queued"}).json()["data"]:
        api.http.post(f"/v1/batches/{batch['id']}/cancel")


def make(api: ApiProcess, items: Sequence[object], **options: Any) -> dict[str, Any]:
    return client.make(api, items, defaults={**HELD, "steps": 2}, **options)


def jobs_of(database: sessionmaker[Session], batch: dict[str, Any]) -> list[Job]:
    with database.begin() as session:
        statement = select(Job).where(Job.batch_id == decode_id("batch", batch["id"]))
        return list(session.scalars(statement.order_by(Job.id)))


def refused(api: ApiProcess, answer: httpx2.Response) -> list[dict[str, Any]]:
    """The whole report of a refused file, which left a failed batch without jobs."""
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "batch_rejected"
    location = answer.headers["location"].removeprefix(api.url)
    batch = api.http.get(location).json()
    assert batch["state"] == "failed"
    assert batch["counts"]["total"] == 0
    report = lines_of(api.http.get(f"{location}/errors"))
    assert len(report) >= len(problem["errors"]) >= 1
    return report


def test_a_list_of_objects_and_strings(api: ApiProcess, database: sessionmaker[Session]) -> None:
    items = [{"custom_id": "a", **GOOD, "seeds": [5, 9]}, "two dogs", {**GOOD, "steps": 7}]
    batch = make(
        api, items, session_id="s1", priority=7, metadata={"team": "red"}, start_within=3600
    )
    assert batch["state"] == "queued"
    assert batch["counts"] | {"queued": 0} == dict.fromkeys(batch["counts"], 0) | {"total": 3}
    assert (batch["lines"], batch["images"]["total"]) == (3, 4)
    assert (batch["priority"], batch["metadata"]) == (7, {"team": "red"})
    jobs = jobs_of(database, batch)
    assert [(job.custom_id, job.line) for job in jobs] == [("a", 1), ("line-2", 2), ("line-3", 3)]
    assert [job.prompt for job in jobs] == ["a red hat", "two dogs", "a red hat"]
    assert [job.steps for job in jobs] == [2, 2, 7]
    assert jobs[0].seeds == [5, 9]
    assert {(job.queue_class, job.session_id, job.state) for job in jobs} == {
        ("bulk", "s1", "queued")
    }
    assert all(job.start_deadline is not None for job in jobs)
    assert batch["cost"] == sum(job.cost for job in jobs)


def test_text_survives_the_way_into_the_database(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    texts = [
        "tab\there",
        "back\\slash \\N \\.",
        'quo"te',
        "líne\nbreak\r\n",
        "日本 🎞",
        "{x}",
        "\\t",
    ]
    items = [{"prompt": text, "metadata": {"k": text[:9].strip()}} for text in texts]
    jobs = jobs_of(database, make(api, items))
    assert [job.prompt for job in jobs] == texts
    assert [job.job_metadata["k"] for job in jobs] == [text[:9].strip() for text in texts]


def test_a_jsonl_file_with_options_in_form_fields(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    content = jsonl([{**GOOD, "custom_id": f"c{n}"} for n in range(30)])
    answer = post_file(
        api.http,
        gzip.compress(content),
        "prompts.jsonl.gz",
        defaults={**HELD, "steps": 3},
        session_id="from-a-file",
        priority=2,
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == answer.json()["links"]["self"]
    jobs = jobs_of(database, answer.json())
    assert [job.custom_id for job in jobs] == [f"c{n}" for n in range(30)]
    assert {(job.steps, job.session_id) for job in jobs} == {(3, "from-a-file")}


def test_a_csv_file(api: ApiProcess, database: sessionmaker[Session]) -> None:
    text = io.StringIO()
    rows: list[list[object]] = [
        ["custom_id", "prompt", "seed", "metadata.team"],
        ["a", 'a "red", hat\n!', 3, "x"],
    ]
    csv.writer(text).writerows(rows)
    answer = post_file(api.http, text.getvalue().encode(), "prompts.csv", defaults=HELD)
    assert answer.status_code == 202, answer.text
    assert answer.json()["source"] == "csv"
    [job] = jobs_of(database, answer.json())
    assert (job.prompt, job.seeds, job.job_metadata) == ('a "red", hat\n!', [3], {"team": "x"})


def test_a_file_sent_ahead_and_never_a_stranger_s(api: ApiProcess, other_api_key: str) -> None:
    content = jsonl([GOOD, GOOD])
    files = {"file": ("ahead.jsonl", io.BytesIO(content))}
    kept = api.http.post("/v1/batches/files", files=files)
    assert kept.status_code == 201, kept.text
    upload_id = kept.json()["id"]
    body = {"upload_id": upload_id, "defaults": HELD}
    answer = api.http.post("/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["counts"]["total"] == 2
    with api.client(other_api_key) as stranger:
        assert stranger.post("/v1/batches", json=body).status_code == 404
        assert stranger.get(f"/v1/batches/files/{upload_id}").status_code == 404
        assert stranger.delete(f"/v1/batches/files/{upload_id}").status_code == 404
    assert api.http.delete(f"/v1/batches/files/{upload_id}").status_code == 204
    assert api.http.post("/v1/batches", json=body).status_code == 404


def test_one_bad_line_among_many_refuses_all(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    with database.begin() as session:
        before = session.scalar(select(func.count()).select_from(Job))
    lines = [GOOD] * 1500 + [{"prompt": "x", "steps": 0}] + [GOOD] * 10
    [finding] = refused(api, post_file(api.http, jsonl(lines), defaults=HELD))
    assert finding == {
        "type": "validation",
        "line": 1501,
        "custom_id": None,
        "pointer": "/steps",
        "code": "greater_than_equal",
        "message": "Input should be greater than or equal to 1",
    }
    with database.begin() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == before


def test_bad_lines_can_be_skipped_and_all_their_errors_are_kept(api: ApiProcess) -> None:
    lines = [GOOD, {"prompt": "", "colour": 1}, GOOD, {"prompt": "x", "width": 7, "model": "no"}]
    answer = post_file(api.http, jsonl(lines), defaults=HELD, on_error="skip")
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["lines"], batch["invalid_lines"], batch["counts"]["total"]) == (4, 2, 2)
    report = lines_of(api.http.get(f"/v1/batches/{batch['id']}/errors"))
    assert [(f["line"], f["pointer"], f["code"]) for f in report] == [
        (2, "/prompt", "empty"),
        (2, "/colour", "extra_forbidden"),
        (4, "/width", "multiple_of"),
    ]


@pytest.mark.parametrize(
    ("lines", "pointer", "code"),
    [
        ([{**GOOD, "custom_id": "a"}] * 2, "/custom_id", "duplicate_custom_id"),
        ([{**GOOD, "custom_id": ""}], "/custom_id", "malformed_custom_id"),
        ([{**GOOD, "custom_id": "a\nb"}], "/custom_id", "malformed_custom_id"),
        ([{**GOOD, "custom_id": 7}], "/custom_id", "malformed_custom_id"),
        ([{**GOOD, "model": "nobody"}], "/model", "unknown_model"),
        ([{**GOOD, "seed": 1, "seeds": [1]}], "/seeds", "conflicting_seeds"),
        ([{**GOOD, "seed": 2**60}], "/seed", "less_than_equal"),
        ([{**GOOD, "guidance_scale": 1e308 * 10}], "", "malformed_json"),
        ([{**GOOD, "num_images": 17}], "/num_images", "too_many_images"),
        ([{**GOOD, "init_image": "data:image/png;base64,AA"}], "/init_image", None),
        ([{**GOOD, "init_image": "upl_01jd4zk3v8e0x9m5q7r2t6w8ya"}], "/init_image", None),
        ([{"matrix": {"seed": [1] * 300, "steps": [1] * 200}, **GOOD}], "", "too_many_jobs"),
        ([{"custom_id": "a", "prompt": "{x|y}"}, {"custom_id": "a-2", **GOOD}], "/custom_id", None),
        ([], None, "empty"),
    ],
)
def test_what_a_line_may_not_say(
    api: ApiProcess, lines: list[Any], pointer: str | None, code: str | None
) -> None:
    report = refused(api, post_file(api.http, jsonl(lines), defaults=HELD))
    assert report[0]["pointer"] == pointer
    assert code in (None, report[0]["code"])


def test_an_image_of_another_tenant_is_no_starting_point(
    api: ApiProcess, other_api_key: str
) -> None:
    files = {"file": ("red.png", png(), "image/png")}
    mine = api.http.post("/v1/uploads", files=files).json()["id"]
    line = {**GOOD, "init_image": mine, "strength": 0.9, "steps": 4}
    assert make(api, [line] * 3)["counts"]["total"] == 3
    with api.client(other_api_key) as stranger:
        answer = post_file(stranger, jsonl([line]), defaults=HELD)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == "init_image_not_found"


def test_lines_may_have_a_true_guidance_scale(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    """From JSON, a matrix and a table."""
    lines = [{**GOOD, "true_cfg_scale": 2.5}, {"prompt": "a", "matrix": {"true_cfg_scale": [1, 3]}}]
    scales = [job.true_cfg_scale for job in jobs_of(database, make(api, lines))]
    assert scales == [2.5, 1.0, 3.0]
    table = b"prompt,true_cfg_scale\na,4.5\nb,\n"
    batch = post_file(api.http, table, "a.csv", defaults={**HELD, "steps": 2}).json()
    assert [job.true_cfg_scale for job in jobs_of(database, batch)] == [4.5, None]


def test_initial_images_keep_their_shape_in_every_kind_of_file(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    files = {"file": ("red.png", png("red", 256, 128), "image/png")}
    wide = api.http.post("/v1/uploads", files=files).json()["id"]
    line = {"prompt": "a {red|blue} hat", "init_image": wide, "strength": 0.5}
    matrix = {**line, "prompt": "a", "matrix": {"resize_mode": ["fit", "stretch"], "width": [128]}}
    table = f"prompt,init_image,width,height,resize_mode\na,{wide},,,\nb,{wide},64,64,fit\n"
    batches = [
        make(api, [line, matrix]),
        post_file(api.http, jsonl([line, matrix]), defaults={**HELD, "steps": 2}).json(),
        post_file(api.http, table.encode(), "a.csv", defaults={**HELD, "steps": 2}).json(),
    ]
    made = [
        [(job.width, job.height, job.resize_mode) for job in jobs_of(database, batch)]
        for batch in batches
    ]
    follows = made[2][0]
    assert follows[0] == 2 * follows[1]
    assert made[0] == made[1] == [follows, follows, (128, 64, "fit"), (128, 64, "stretch")]
    assert made[2] == [follows, (64, 64, "fit")]
    assert all(
        batch["cost"] == sum(job.cost for job in jobs_of(database, batch)) for batch in batches
    )


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"", "a.jsonl", "empty"),
        (b"\n\n", "a.jsonl", "empty"),
        (b"prompt\n", "a.csv", "empty"),
        (b'{"prompt": "a"}\n{"prom', "a.jsonl", "malformed_json"),
        (b'{"prompt": "\xff"}', "a.jsonl", "invalid_utf8"),
        (b'"' + b"x" * 10_000_000 + b'"\n"a"', "a.jsonl", "line_too_long"),
        (gzip.compress(bytes(120_000_000), 1), "a.jsonl", "too_large"),
        (gzip.compress(b'"a"\n')[:-4], "a.jsonl", "malformed_gzip"),
        (b'prompt\n"a', "a.csv", "malformed_csv"),
        (b"prompt,colour\na,b\n", "a.csv", "unknown_column"),
        (b"1\n" * 50_001, "a.jsonl", "too_many_lines"),  # a good line takes seven times as long
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_files_get_a_clear_report(
    api: ApiProcess, content: bytes, name: str, code: str
) -> None:
    report = refused(api, post_file(api.http, content, name, defaults=HELD))
    assert code in {finding["code"] for finding in report}


NESTED = "{" + "|".join(["{" + "|" * 99 + "}"] * 40) + "}"
SIDES = list(range(220))


@pytest.mark.parametrize(
    ("content", "defaults", "code"),
    [
        (jsonl([{"prompt": NESTED + "x" * 150_000}]), {}, "too_long"),
        (b"\n" * (95 * 1024 * 1024), {}, "too_many_lines"),
        pytest.param(
            b"{}\n" * 50_000,
            {"prompt": "x" * 4000, "metadata": {f"k{n}": "x" * 512 for n in range(16)}},
            "too_large",
            marks=pytest.mark.long,
        ),
        (
            jsonl([{"matrix": {"seed": SIDES, "steps": SIDES}, "prompt": "{a|b}"}] * 5000),
            {},
            "too_many_jobs",
        ),
        pytest.param(
            jsonl([{"matrix": {"width": [*[64] * 219, 65], "seed": SIDES}}] * 5000),
            GOOD,
            "too_many_jobs",
            marks=pytest.mark.long,
        ),
    ],
    ids=["alternatives", "blank lines", "defaults", "combinations", "refused late"],
)
def test_what_a_few_bytes_expand_to_is_bounded(
    api: ApiProcess, content: bytes, defaults: dict[str, Any], code: str
) -> None:
    """The first took gigabytes of memory, the second a minute of a thread; each is 100 kB sent."""
    api.forget_peak()
    before, cpu = api.peak_bytes(), api.cpu_seconds()
    answer = post_file(api.http, gzip.compress(content, 9), defaults=HELD | defaults)
    report = refused(api, answer)
    assert code in {finding["code"] for finding in report}
    assert api.peak_bytes() - before < 150 * 1024 * 1024
    assert api.cpu_seconds() - cpu < 60


def test_more_alternatives_than_can_be_counted_are_refused(api: ApiProcess) -> None:
    answer = api.http.post("/v1/batches", json={"items": ["{a|b}" * 15_000]})
    assert answer.status_code == 422, answer.text
    assert {finding["code"] for finding in refused(api, answer)} == {"too_many_jobs"}


def test_a_body_of_empty_objects_is_not_parsed(api: ApiProcess) -> None:
    api.forget_peak()
    before = api.peak_bytes()
    body = gzip.compress(b'{"items":[' + b"{}," * 5_000_000 + b"{}]}", 1)
    headers = {"content-type": "application/json"}
    answer = api.http.post("/v1/batches", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert api.peak_bytes() - before < 100 * 1024 * 1024


def test_of_a_line_that_fails_late_nothing_is_left(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    """Its first jobs are written before the bad one is made."""
    files = {"file": ("red.png", png(), "image/png")}
    images = [api.http.post("/v1/uploads", files=files).json()["id"]] * 300
    images.append("img_01jd4zk3v8e0x9m5q7r2t6w8ya")
    lines = [
        {**GOOD, "custom_id": "first", "matrix": {"seed": list(range(300))}},
        {**GOOD, "custom_id": "bad", "session_id": "never", "matrix": {"width": [*[64] * 700, 65]}},
        {**GOOD, "custom_id": "lost", "strength": 1.0, "matrix": {"init_image": images}},
        {**GOOD, "custom_id": "bad", "seed": 7},
    ]
    answer = post_file(api.http, jsonl(lines), defaults={**HELD, "steps": 1}, on_error="skip")
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert (batch["lines"], batch["invalid_lines"], batch["counts"]["total"]) == (4, 2, 301)
    model = api.http.get("/v1/models").json()["data"]
    [side] = [m["default_width"] * m["default_height"] for m in model if m["name"] == "held"]
    assert batch["cost"] == 301 * side
    jobs = jobs_of(database, batch)
    assert [job.custom_id for job in jobs] == [*(f"first-{n + 1}" for n in range(300)), "bad"]
    assert [job.seeds for job in jobs] == [*([n] for n in range(300)), [7]]
    report = lines_of(api.http.get(f"/v1/batches/{batch['id']}/errors"))
    assert [(f["line"], f["code"]) for f in report] == [
        (2, "multiple_of"),
        (3, "init_image_not_found"),
    ]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/items"),
        ({"items": ["a"], "upload_id": "upl_x"}, "/items"),
        ({"items": "a"}, "/items"),
        ({"items": ["a"], "priority": 10}, "/priority"),
        ({"items": ["a"], "defaults": {"custom_id": "a"}}, "/defaults/custom_id"),
        ({"items": ["a"], "webhook": {"url": "ftp://example.com/"}}, "/webhook/url"),
        ({"items": ["a"], "colour": "red"}, "/colour"),
    ],
)
def test_what_a_request_may_not_say(api: ApiProcess, body: Any, pointer: str) -> None:
    answer = api.http.post("/v1/batches", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_other_bodies_are_refused(api: ApiProcess) -> None:
    assert api.http.post("/v1/batches", content=b"x").status_code == 415
    broken = api.http.post(
        "/v1/batches", content=b'{"items": [', headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["code"]) == (422, "malformed_json")
    no_file = api.http.post("/v1/batches", files={"other": ("a", b"a")})
    assert no_file.status_code == 422
    bad_field = post_file(api.http, b'"a"', defaults="{")
    assert bad_field.json()["errors"][0]["pointer"] == "/defaults"


def test_a_dry_run_counts_and_keeps_nothing(
    api: ApiProcess, database: sessionmaker[Session]
) -> None:
    with database.begin() as session:
        before = session.scalar(select(func.count()).select_from(Batch))
    items = [
        {"prompt": "a {red|blue|green} {hat|scarf}", "matrix": {"seed": [1, 2]}, "num_images": 2}
    ]
    body: dict[str, Any] = {
        "items": items,
        "defaults": {**HELD, "width": 64, "height": 64, "steps": 5},
    }
    shown = api.http.post("/v1/batches", params={"dry_run": 1}, json=body)
    assert shown.status_code == 200, shown.text
    found = shown.json()
    assert (found["accepted"], found["jobs"], found["images"]) == (True, 12, 24)
    assert found["cost"] == 24 * 64 * 64 * 5
    body["items"].append({"steps": "many"})
    found = api.http.post("/v1/batches", params={"dry_run": 1}, json=body).json()
    assert (found["accepted"], found["error_count"], found["invalid_lines"]) == (False, 2, 1)
    with database.begin() as session:
        assert session.scalar(select(func.count()).select_from(Batch)) == before


def test_a_dry_run_shows_the_columns_and_the_first_jobs(api: ApiProcess) -> None:
    def tried(content: bytes, name: str, **options: Any) -> dict[str, Any]:
        answer = post_file(api.http, content, name, params={"dry_run": 1}, **options)
        found: dict[str, Any] = answer.json()
        return found

    unmapped = tried(PRODUCTS, "p.csv")
    assert not unmapped["accepted"]
    assert unmapped["first_jobs"] == []
    columns = {column["name"]: column for column in unmapped["columns"]}
    assert list(columns) == ["sku", "product", "colour", "stock", "seed"]
    assert columns["sku"]["fields"] == []
    assert columns["seed"]["fields"] == ["seed"]
    assert columns["product"]["example"] == "felt {a|b} hat"
    mapped = tried(PRODUCTS, "p.csv", **TABLE)
    assert mapped["columns"][0]["fields"] == ["custom_id", "metadata.sku"]
    jobs = mapped["first_jobs"]
    assert len(jobs) == min(5, mapped["jobs"])
    assert jobs[0]["prompt"].startswith("a big ")
    assert (jobs[0]["line"], jobs[0]["model"], len(jobs[0]["seeds"])) == (2, "held", 1)
    lines = jsonl([{"prompt": "a hat", "steps": 0}, "a scarf", {"prompt": "a cap", "seeds": [7]}])
    skipped = tried(lines, "l.jsonl", on_error="skip")
    assert [job["prompt"] for job in skipped["first_jobs"]] == ["a scarf", "a cap"]
    assert skipped["first_jobs"][1]["seeds"] == [7]
    assert [one["name"] for one in skipped["columns"]] == ["prompt", "steps", "seeds"]
    assert tried(b"\x1f\x8bno", "l.jsonl")["columns"] == []
    assert tried(b"PK\x03\x04\xff\xfe", "workbook.csv")["columns"] == []


def test_a_batch_is_called_as_it_was_told_or_as_its_file(api: ApiProcess) -> None:
    def name_of(answer: Any) -> str | None:
        batch: dict[str, Any] = api.http.get(answer.headers["location"]).json()
        return batch["name"]

    content = jsonl([GOOD])
    assert name_of(post_file(api.http, content, "hüte.jsonl", defaults=HELD)) == "hüte.jsonl"
    named = {"items": [GOOD], "defaults": HELD, "name": "Hats"}
    assert name_of(api.http.post("/v1/batches", json=named)) == "Hats"
    form = {"name": "7", "defaults": json.dumps(HELD)}
    file = {"file": ("a.jsonl", content)}
    assert name_of(api.http.post("/v1/batches", data=form, files=file)) == "7"
    assert name_of(api.http.post("/v1/batches", json={"items": [GOOD], "defaults": HELD})) is None
    refused_batch = post_file(api.http, b"no\n", "bad.jsonl")
    assert (refused_batch.status_code, name_of(refused_batch)) == (422, "bad.jsonl")
    sent = api.http.post("/v1/batches/files", files={"file": ("sent.jsonl", content)}).json()
    ahead = {"upload_id": sent["id"], "defaults": HELD}
    assert name_of(api.http.post("/v1/batches", json=ahead)) == "sent.jsonl"
    for name in ("", "a\0b", "x" * 201):
        answer = api.http.post("/v1/batches", json={"items": [GOOD], "name": name})
        assert answer.json()["errors"][0]["pointer"] == "/name"


def test_an_idempotency_key_replays_the_original_answer(api: ApiProcess) -> None:
    content = jsonl([GOOD] * 3)
    headers = {"Idempotency-Key": "batch-once"}
    first = post_file(api.http, content, defaults=HELD, headers=headers)
    again = post_file(api.http, content, defaults=HELD, headers=headers)
    assert first.status_code == again.status_code == 202
    assert first.content == again.content
    assert again.headers["idempotency-replayed"] == "true"
    other = post_file(api.http, content + b'"x"\n', defaults=HELD, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")


def test_batches_are_listed_newest_first_for_their_tenant_alone(
    api: ApiProcess, other_api_key: str
) -> None:
    ids = [make(api, [GOOD])["id"] for _ in range(3)]
    paused = [api.http.post(f"/v1/batches/{batch}/pause").status_code for batch in ids]
    assert paused == [200, 200, 200]  # whoever else started workers, they stay queued
    page = api.http.get("/v1/batches", params={"limit": 2, "state": "queued"}).json()
    assert [batch["id"] for batch in page["data"]] == [ids[2], ids[1]]
    assert page["has_more"]
    rest = api.http.get(
        "/v1/batches", params={"limit": 2, "state": "queued", "after": page["next_cursor"]}
    ).json()
    assert rest["data"][0]["id"] == ids[0]
    with api.client(other_api_key) as stranger:
        theirs = stranger.get("/v1/batches", params={"limit": 200}).json()["data"]
        assert not {batch["id"] for batch in theirs} & set(ids)
        for path in ("", "/items", "/results", "/errors", "/archive", "/contact-sheet"):
            assert stranger.get(f"/v1/batches/{ids[0]}{path}").status_code == 404, path
        for action in ("cancel", "pause", "resume", "retry-failed"):
            assert stranger.post(f"/v1/batches/{ids[0]}/{action}").status_code == 404, action
    assert get(api, ids[0])["state"] == "queued"


def test_items_are_pages_in_the_order_of_the_lines(api: ApiProcess) -> None:
    batch = make(api, [{**GOOD, "custom_id": f"c{n}"} for n in range(25)])
    path = f"/v1/batches/{batch['id']}/items"
    seen: list[str] = []
    after = None
    while True:
        params = {"limit": 10} | ({"after": after} if after else {})
        page = api.http.get(path, params=params).json()
        seen += [item["custom_id"] for item in page["data"]]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert seen == [f"c{n}" for n in range(25)]
    [item] = api.http.get(path, params={"custom_id": "c7"}).json()["data"]
    assert (item["line"], item["batch_id"]) == (8, batch["id"])
    assert api.http.get(path, params={"state": "succeeded"}).json()["data"] == []
    assert api.http.get(f"/v1/jobs/{item['id']}").json()["batch_id"] == batch["id"]


PRODUCTS = b"sku,product,colour,stock,seed\nH-1,felt {a|b} hat,red,7,5\nS-2,scarf,blue,0,6\n"
TABLE: dict[str, Any] = {
    "template": "a {big|small} {colour} {product}",
    "columns": {"sku": ["custom_id", "metadata.sku"]},
    "defaults": HELD,
}


@pytest.mark.parametrize("way", ["form", "file_id", "jsonl", "items"])
def test_a_product_table_with_a_template(
    api: ApiProcess, database: sessionmaker[Session], way: str
) -> None:
    rows = list(csv.DictReader(io.StringIO(PRODUCTS.decode())))
    objects = [row | {"seed": int(row["seed"])} for row in rows]
    if way == "form":
        answer = post_file(api.http, PRODUCTS, "products.csv", **TABLE)
    elif way == "jsonl":
        answer = post_file(api.http, jsonl(objects), **TABLE)
    elif way == "items":
        answer = api.http.post("/v1/batches", json={"items": objects, **TABLE})
    else:
        file = {"file": ("products.csv", io.BytesIO(PRODUCTS))}
        kept = api.http.post("/v1/batches/files", files=file).json()
        answer = api.http.post("/v1/batches", json={"upload_id": kept["id"], **TABLE})
    assert answer.status_code == 202, answer.text
    jobs = jobs_of(database, answer.json())
    assert [(job.custom_id, job.prompt, job.seeds, job.job_metadata) for job in jobs] == [
        ("H-1-1", "a big red felt {a|b} hat", [5], {"sku": "H-1"}),
        ("H-1-2", "a small red felt {a|b} hat", [5], {"sku": "H-1"}),
        ("S-2-1", "a big blue scarf", [6], {"sku": "S-2"}),
        ("S-2-2", "a small blue scarf", [6], {"sku": "S-2"}),
    ]


def test_what_does_not_fit_a_table_is_named(api: ApiProcess) -> None:
    answer = post_file(api.http, PRODUCTS, "p.csv", defaults=HELD, template="a {color} hat")
    [error] = refused(api, answer)
    assert (error["code"], error["line"]) == ("unknown_placeholder", 1)
    assert "Did you mean colour?" in error["message"]
    assert "sku, product, colour, stock, seed" in error["message"]
    seen = post_file(
        api.http, PRODUCTS, "p.csv", columns={"descr": "prompt"}, params={"dry_run": 1}
    ).json()
    assert (seen["accepted"], seen["errors"][0]["code"]) == (False, "missing_column")
    # As ever: without either option a column that is no field is a mistake.
    assert refused(api, post_file(api.http, PRODUCTS, "p.csv"))[0]["code"] == "unknown_column"


@pytest.mark.parametrize(
    ("options", "code", "pointer"),
    [
        ({"columns": {"sku": "custom-id"}}, "unknown_field", "/columns/sku"),
        ({"columns": {"a": "seed", "b/c": "seed"}}, "duplicate_field", "/columns/b~1c"),
        ({"template": "a hat"}, "no_placeholder", "/template"),
        ({"template": "a {b}\0"}, "control_characters", "/template"),
    ],
)
def test_table_options_that_cannot_be_meant(
    api: ApiProcess, options: dict[str, Any], code: str, pointer: str
) -> None:
    for answer in (
        post_file(api.http, PRODUCTS, "p.csv", **options),
        api.http.post("/v1/batches", json={"items": [GOOD], **options}),
    ):
        assert answer.status_code == 422, answer.text
        [error] = answer.json()["errors"]
        assert (error["code"], error["pointer"]) == (code, pointer)
        if code == "unknown_field":
            assert "Did you mean custom_id?" in error["message"]


@pytest.mark.parametrize("mapped", [7, {"a": "b"}, [None]])
def test_a_mapping_to_what_is_no_name(api: ApiProcess, mapped: object) -> None:
    answer = api.http.post("/v1/batches", json={"items": [GOOD], "columns": {"sku": mapped}})
    assert answer.status_code == 422
    assert all(error["pointer"].startswith("/columns/sku") for error in answer.json()["errors"])

"""Keys, scopes and the one shape of every answer."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from shared.core.keys import new_key, parse_key
from shared.core.tenants import ApiKey
from tests.integration.api.test_bad_input import check_problem
from tests.processes import ApiProcess, wait_until
from tests.quick_api import LINGER_SECONDS

UNKNOWN = new_key().key


def id_of(key: str) -> str:
    parsed = parse_key(key)
    assert parsed is not None
    return parsed.id


@pytest.fixture
def nobody(lone_api: ApiProcess) -> httpx2.Client:
    """A client without a key."""
    return lone_api.client(None)


@pytest.mark.long
def test_nothing_is_open_to_strangers(nobody: httpx2.Client) -> None:
    schema = nobody.get("/openapi.json").json()
    public = {"/", "/healthz", "/readyz", "/problems/{code}", "/metrics"}
    for path, operations in schema["paths"].items():
        for method in operations.keys() - {"parameters"}:
            if path in public:
                continue
            url = re.sub(r"\{\w+\}", "x", path)
            answer = nobody.request(method.upper(), url)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            check_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer x", "Basic dTpw", "Bearer drk_abc_def", "drk_x", f"Bearer {UNKNOWN}"],
    ids=["empty", "no key", "basic", "too short", "no scheme", "well formed, unknown"],
)
def test_a_wrong_key_is_refused(nobody: httpx2.Client, header: str) -> None:
    answer = nobody.get("/v1/jobs", headers={"Authorization": header})
    check_problem(answer, 401, "unauthenticated")


def test_a_missing_key_reads_differently_from_a_wrong_one(nobody: httpx2.Client) -> None:
    told = [
        nobody.get("/v1/jobs", headers=headers).json()["detail"]
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": f"Bearer {UNKNOWN}"},
        )
    ]
    assert told[0].startswith("Send an API key")
    assert len(set(told)) == 3


def test_a_stranger_cannot_make_us_read_a_body(nobody: httpx2.Client) -> None:
    check_problem(nobody.post("/v1/jobs", content=b"not json"), 401, "unauthenticated")


def test_scopes_limit_a_key(lone_api: ApiProcess, make_key: Callable[..., str]) -> None:
    reader = lone_api.client(make_key("lone", ("jobs:read",)))
    assert reader.get("/v1/jobs").status_code == 200
    problem = check_problem(
        reader.post("/v1/jobs", json={"prompt": "a"}), 403, "insufficient_scope"
    )
    assert "the scope jobs." in problem["detail"]
    check_problem(reader.get("/v1/images/img_x"), 403, "insufficient_scope")
    writer = lone_api.client(make_key("lone", ("jobs",)))
    assert writer.post("/v1/jobs", json={"prompt": "a"}).status_code == 202
    assert writer.get("/v1/jobs").status_code == 200


@pytest.mark.long
def test_keys_that_have_ended_are_refused_within_seconds(
    lone_api: ApiProcess, make_key: Callable[..., str], database: sessionmaker[Session]
) -> None:
    keys = {field: make_key("lone") for field in ("revoked_at", "expires_at")}
    clients = [lone_api.client(key) for key in keys.values()]
    assert [client.get("/v1/jobs?limit=1").status_code for client in clients] == [200, 200]
    with database.begin() as session:
        for field, key in keys.items():
            ended = update(ApiKey).where(ApiKey.id == id_of(key))
            session.execute(ended.values({field: datetime.now(UTC)}))
    for client in clients:
        wait_until(partial(_is_refused, client), 10, "the refusal")


def _is_refused(client: httpx2.Client) -> bool:
    return client.get("/v1/jobs?limit=1").status_code == 401


def test_the_use_of_a_key_is_noted(
    lone_api: ApiProcess, make_key: Callable[..., str], database: sessionmaker[Session]
) -> None:
    key = make_key("lone")
    lone_api.client(key).get("/v1/jobs?limit=1")
    with database() as session:
        assert session.get_one(ApiKey, id_of(key)).last_used_at is not None


def test_unknown_paths_and_methods_are_problems(http: httpx2.Client) -> None:
    check_problem(http.get("/v2/jobs"), 404, "not_found")
    answer = http.put("/v1/jobs", json={})
    check_problem(answer, 405, "method_not_allowed")
    for path, methods in {
        "/v1/jobs": "GET, HEAD, POST",
        "/v1/jobs/x": "DELETE, GET, HEAD",
        "/v1/search": "GET, HEAD, POST",
    }.items():
        assert http.patch(path).headers["allow"] == methods
    assert "POST" in answer.headers["allow"]


def test_a_request_id_is_kept_or_made(http: httpx2.Client) -> None:
    mine = http.get("/healthz", headers={"X-Request-Id": "trace-1.a_b"})
    assert mine.headers["x-request-id"] == "trace-1.a_b"
    for wrong in ("a b", "x" * 129, "<script>", ""):
        made = http.get("/healthz", headers={"X-Request-Id": wrong}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_every_answer_has_security_headers(http: httpx2.Client) -> None:
    for path in ("/", "/v1/jobs", "/v1/nothing", "/openapi.json", "/docs"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_the_root_leads_on(http: httpx2.Client) -> None:
    links: dict[str, str] = http.get("/").json()["links"]
    for link in links.values():
        assert http.get(link).status_code == 200, link


def test_models_show_defaults_limits_and_workers(http: httpx2.Client) -> None:
    page = http.get("/v1/models").json()
    model, _ = page["data"]
    assert (page["has_more"], page["next_cursor"]) == (False, None)
    assert (model["name"], model["default"], model["served"], model["workers"]) == (
        *("paper", True, False, []),
    )
    assert (model["default_width"], model["max_height"], model["max_steps"]) == (128, 192, 100)
    assert "euler" in model["schedulers"]
    assert model["family"] == "simulated", "before any worker says so"


def test_every_operation_is_documented(http: httpx2.Client) -> None:
    schema = http.get("/openapi.json").json()
    names: list[str] = []
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            names.append(operation["operationId"])
            assert operation["summary"], path
            if path.startswith("/v1/"):
                problems: dict[str, Any] = operation["responses"]
                assert "application/problem+json" in problems["401"]["content"], path
    assert len(names) == len(set(names))
    assert {"jobs.submit", "jobs.get", "jobs.events", "images.reproduce"} <= set(names)
    submit = schema["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert submit["schema"] == {"$ref": "#/components/schemas/JobSubmission"}
    assert submit["examples"]
    for reference in re.findall(r'"#/components/schemas/(\w+)"', http.get("/openapi.json").text):
        assert reference in schema["components"]["schemas"]


def test_every_problem_type_has_a_page(http: httpx2.Client) -> None:
    problem = http.get("/v1/nothing").json()
    page = http.get(problem["type"])
    assert page.status_code == 200
    assert page.json()["title"] == problem["title"]
    check_problem(http.get("/problems/none"), 404, "not_found")


def test_a_body_that_comes_after_its_answer_does_no_harm(lone_api: ApiProcess) -> None:
    """Clients send header and body apart; the connection is then used again for long."""
    headers = {"Authorization": f"Bearer {lone_api.key}"}
    connection = HTTPConnection(lone_api.url.removeprefix("http://"), timeout=60)
    connection.auto_open = 0  # the test is about this very connection
    connection.connect()
    connection.request("PUT", "/v1/jobs", headers={**headers, "Content-Length": "2"})
    refusal = connection.getresponse()
    assert (refusal.status, bool(refusal.read())) == (405, True)
    connection.send(b"{}")
    until = time.monotonic() + 1.5 * LINGER_SECONDS
    while time.monotonic() < until:
        connection.request("GET", "/healthz", headers=headers)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    connection.close()


def test_head_is_get_without_the_body(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json={"prompt": "a red circle"}).json()
    varying = {"date", "x-request-id", "etag"}
    for path in ("/", "/healthz", "/docs", "/openapi.json", "/v1/jobs", f"/v1/jobs/{job['id']}"):
        got, head = http.get(path), http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert {name for name, _ in head.headers.items()} == {
            name for name, _ in got.headers.items()
        }
        for name in set(got.headers) - varying:
            if not (name == "content-length" and path.startswith("/v1/jobs")):
                assert head.headers[name] == got.headers[name], (path, name)


def test_head_refuses_what_get_refuses(lone_api: ApiProcess, http: httpx2.Client) -> None:
    with lone_api.client(None) as nobody:
        assert nobody.head("/v1/jobs").status_code == 401
    assert http.head("/v1/jobs/job_none").status_code == 404
    assert http.head("/v1/images/inspect").status_code == 404
    assert http.head("/v1/webhook-secret/rotate").status_code == 405


@pytest.mark.long
def test_head_of_a_stream_ends_at_once(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs", json={"prompt": "a red circle"}).json()
    # More often than a key may hold streams: none stays open.
    for _ in range(80):
        head = http.head(f"/v1/jobs/{job['id']}/events", timeout=60)
        assert (head.status_code, head.headers["content-type"]) == (
            *(200, "text/event-stream; charset=utf-8"),
        )

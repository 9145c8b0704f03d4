"""The MCP server, as the real `mcp` client uses it in both ages of the protocol."""

import asyncio
import base64
import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import httpx2
import mcp
import mcp_types
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from PIL import Image
from starlette.requests import Request

from api.app import create_app
from api.compat.mcp.calls import PRINCIPAL
from api.compat.mcp.server import build_server
from api.compat.mcp.tools import TOOLS
from api.core.auth import authenticate
from api.core.limits import RELEASE
from shared.core.quotas import Quotas
from shared.core.settings import Settings
from tests.conftest import MakeKey
from tests.images import data_url, encode, mandelbrot
from tests.patient_api import be_patient
from tests.processes import PATIENT, ApiProcess, WorkerProcess, free_port, wait_until

T = TypeVar("T")
TASKS = "io.modelcontextprotocol/tasks"
AGES = ("legacy", "2026-07-28")


@pytest.fixture
def new_key(make_key: MakeKey) -> MakeKey:
    """Keys of the tenant `mcp`."""
    return partial(make_key, "mcp", scopes=["jobs", "images", "search", "batches"])


@asynccontextmanager
async def connected(
    api: ApiProcess, key: str | None = None, mode: str = "2026-07-28", **options: Any
) -> AsyncIterator[mcp.Client]:
    """A client over HTTP."""
    headers = {"Authorization": f"Bearer {key or api.key}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
        transport = streamable_http_client(f"{api.url}/mcp", http_client=http)
        async with mcp.Client(transport, mode=mode, **options) as client:
            yield client


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def call(client: mcp.Client, tool: str, **arguments: Any) -> Any:
    """What the tool says for programs; it has succeeded."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    text = result.content[0]
    assert isinstance(text, mcp_types.TextContent)
    told = {name: value for name, value in result.structured_content.items() if value is not None}
    assert json.loads(text.text).keys() == told.keys()
    return result.structured_content


async def refusal(client: mcp.Client, tool: str, **arguments: Any) -> Any:
    """What a tool that fails says."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result.content
    return result.structured_content


@pytest.mark.parametrize("mode", ["auto", *AGES])
def test_an_image_with_its_preview_its_link_and_its_progress(
    api: ApiProcess, generate_worker: WorkerProcess, mode: str
) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    async def generate() -> mcp_types.CallToolResult:
        async with connected(api, mode=mode) as client:
            arguments = {"prompt": "an agent's circle", "num_images": 2, "seed": "7", "width": 128}
            return await client.call_tool(
                "generate_image", arguments, progress_callback=cast("Any", progress)
            )

    result = run(generate())
    assert not result.is_error, result.content
    made = result.structured_content
    assert (made["state"], made["seeds"], made["session_id"]) == ("succeeded", [7, 8], "mcp")
    kinds = [one.type for one in result.content]
    assert kinds == ["text", "image", "image", "resource_link", "resource_link"]
    preview: Any = result.content[1]
    shown = Image.open(io.BytesIO(base64.b64decode(preview.data)))
    assert (shown.format, preview.mime_type) == ("WEBP", "image/webp")
    link: Any = result.content[3]
    assert str(link.uri) == made["images"][0]["resource"]
    assert link.mime_type == "image/png"
    job = api.http.get(f"/v1/jobs/{made['id']}").json()
    assert (job["width"], job["session_id"]) == (128, "mcp")
    file = httpx2.get(made["images"][0]["url"], trust_env=False)  # without a key
    assert hashlib.sha256(file.content).hexdigest() == job["images"][0]["sha256"]
    assert told[0][0] == 0
    assert [one[0] for one in told] == sorted({one[0] for one in told})
    assert {one[1] for one in told} == {1.0}
    assert made["id"] in (told[0][2] or "")


def test_the_tools_are_described(api: ApiProcess, new_key: MakeKey) -> None:
    async def look(key: str) -> list[mcp_types.Tool]:
        async with connected(api, key) as client:
            return (await client.list_tools()).tools

    tools = {one.name: one for one in run(look(new_key()))}
    assert list(tools) == [
        *("generate_image", "edit_image", "get_job", "cancel_job", "list_jobs"),
        *("search_images", "reproduce_image", "submit_batch", "get_batch", "list_models"),
    ]
    for one in tools.values():
        assert one.description
        assert one.output_schema
        assert one.annotations is not None
        for name, field in one.input_schema["properties"].items():
            named = name in ("job_id", "image_id", "batch_id", "output_format")
            assert named or field.get("description"), (one.name, name)
    asked = tools["generate_image"].input_schema
    assert asked["required"] == ["prompt"]
    assert "seed" in asked["properties"]
    assert not {"webhook", "init_image", "previews"} & asked["properties"].keys()
    assert tools["edit_image"].input_schema["required"] == ["image"]
    assert tools["cancel_job"].annotations == mcp_types.ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=True
    )
    readers = run(look(new_key(scopes=["jobs:read"])))
    assert [one.name for one in readers] == ["get_job", "list_jobs", "list_models"]


@pytest.mark.parametrize("mode", AGES)
def test_an_agents_day(
    api: ApiProcess, generate_worker: WorkerProcess, cpu_worker: WorkerProcess, mode: str
) -> None:
    """Make, vary, find, reproduce, list: each with what the one before has answered."""
    session = f"day-{mode}"

    async def day() -> None:
        async with connected(api, mode=mode) as client:
            made = await call(
                client, "generate_image", prompt=f"an owl by {mode}", session_id=session
            )
            image = made["images"][0]["id"]
            varied = await call(client, "edit_image", image=image, strength=0.4, session_id=session)
            assert (varied["kind"], varied["prompt"]) == ("img2img", f"an owl by {mode}")
            edited = await call(client, "edit_image", image=image, prompt="an owl at night")
            assert (edited["prompt"], edited["session_id"]) == ("an owl at night", "mcp")
            listed = await call(client, "list_jobs", session_id=session, state=["succeeded"])
            assert [one["id"] for one in listed["jobs"]] == [varied["id"], made["id"]]
            assert listed["jobs"][1]["images"][0]["id"] == image
            first = await call(client, "list_jobs", session_id=session, limit=1)
            rest = await call(
                client, "list_jobs", session_id=session, limit=1, after=first["next_cursor"]
            )
            assert [one["id"] for one in rest["jobs"]] == [made["id"]]
            again = await call(client, "reproduce_image", image_id=image)
            assert (again["verdict"], again["max_pixel_difference"]) == ("identical", 0)
            assert again["job"]["state"] == "succeeded"
            got = await call(client, "get_job", job_id=made["id"])
            url = "url"  # each is signed anew
            assert [{**one, url: 0} for one in got["images"]] == [
                {**one, url: 0} for one in made["images"]
            ]
            newest = await call(client, "search_images", session_id=session)
            assert {one["job_id"] for one in newest["hits"]} == {made["id"], varied["id"]}
            found = await client.call_tool("search_images", {"query": f"an owl by {mode}"})
            best = found.structured_content["hits"][0]
            assert best["prompt"] == f"an owl by {mode}"
            assert best["score"] > 0.5
            assert [one.type for one in found.content][1] == "image"
            like = await call(client, "search_images", image_id=image, session_id=session)
            assert image not in [one["image"]["id"] for one in like["hits"]]
            there = await call(client, "list_models")
            assert [one["name"] for one in there["models"] if one["default"]] == ["sim"]
            assert {one["name"] for one in there["loras"]} >= {"grain"}

    run(day())


def test_an_initial_image_from_a_client(api: ApiProcess, generate_worker: WorkerProcess) -> None:
    url = data_url(encode(mandelbrot()))

    async def edit() -> None:
        async with connected(api) as client:
            made = await call(client, "edit_image", image=url, prompt="a shore")
            assert made["kind"] == "img2img"
            for image, code in (
                ("/etc/passwd", "validation_failed"),
                ("file:///etc/passwd", "validation_failed"),
                ("http://example.com/a.png", "validation_failed"),
                ("https://127.0.0.1/a.png", "validation_failed"),
                ("https://169.254.169.254/latest", "validation_failed"),
                ("img_00000000000000000000000000", "not_found"),
            ):
                refused = await refusal(client, "edit_image", image=image, prompt="a shore")
                assert refused["code"] == code, (image, refused)
                if code == "not_found":
                    continue
                refused = await refusal(
                    client, "edit_image", image=url, prompt="a", mask_image=image
                )
                assert refused["errors"][0]["pointer"] == "/mask_image", (image, refused)
                items = [{"prompt": "a shore", "init_image": image}]
                refused = await refusal(client, "submit_batch", items=items)
                assert refused["code"] == "batch_rejected", (image, refused)
            # Without a prompt there must be one to take over.
            refused = await refusal(client, "edit_image", image=url)
            assert refused["errors"][0]["pointer"] == "/prompt"

    run(edit())


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "pointer"),
    [
        ("generate_image", {}, "validation_failed", "/prompt"),
        ("generate_image", {"prompt": " "}, "validation_failed", "/prompt"),
        ("generate_image", {"prompt": "x", "steps": "many"}, "validation_failed", "/steps"),
        ("generate_image", {"prompt": "x", "width": 100}, "validation_failed", "/width"),
        ("generate_image", {"prompt": "x", "model": "no"}, "validation_failed", "/model"),
        ("generate_image", {"prompt": "x", "num_images": 63}, "validation_failed", "/num_images"),
        ("generate_image", {"prompt": "x", "wdith": 8}, "validation_failed", "/wdith"),
        ("generate_image", {"prompt": "x", "webhook": {}}, "validation_failed", "/webhook"),
        ("generate_image", {"prompt": "x", "wait_seconds": -1}, "validation_failed", "/wait_secon"),
        ("get_job", {"job_id": "job_1"}, "not_found", None),
        ("get_job", {"job_id": "\0"}, "validation_failed", "/job_id"),
        ("cancel_job", {"job_id": "job_00000000000000000000000000"}, "not_found", None),
        ("list_jobs", {"after": "nonsense"}, "malformed_cursor", None),
        ("search_images", {"query": " "}, "validation_failed", "/query"),
        ("search_images", {"query": "a", "image_id": "b"}, "validation_failed", "/image_id"),
        ("reproduce_image", {"image_id": "img_1"}, "not_found", None),
        ("submit_batch", {"items": [{"prompt": ""}]}, "batch_rejected", None),
        ("submit_batch", {"items": []}, "batch_rejected", None),
        ("submit_batch", {}, "validation_failed", "/items"),
        ("get_batch", {"batch_id": "batch_1"}, "not_found", None),
    ],
)
@pytest.mark.parametrize("mode", AGES)
def test_bad_arguments_get_stable_codes(
    *,
    api: ApiProcess,
    mode: str,
    tool: str,
    arguments: dict[str, Any],
    code: str,
    pointer: str | None,
) -> None:
    async def ask() -> Any:
        async with connected(api, mode=mode) as client:
            return await refusal(client, tool, **arguments)

    refused = run(ask())
    assert refused["code"] == code, refused
    assert refused["status"] in (404, 422)
    if pointer is not None:
        assert refused["errors"][0]["pointer"].startswith(pointer), refused


def test_lists_as_texts_and_nulls_as_language_models_write_them(
    api: ApiProcess, generate_worker: WorkerProcess
) -> None:
    async def ask() -> Any:
        async with connected(api) as client:
            return await call(
                client,
                "generate_image",
                prompt="a lenient circle",
                seeds="[3, 5]",
                width=None,
                guidance_scale="4.5",
                metadata='{"a": "b"}',
            )

    made = run(ask())
    job = api.http.get(f"/v1/jobs/{made['id']}").json()
    assert (job["seeds"], job["guidance_scale"], job["metadata"]) == ([3, 5], 4.5, {"a": "b"})


def test_other_tenants_see_nothing(
    api: ApiProcess, generate_worker: WorkerProcess, new_key: MakeKey, other_api_key: str
) -> None:
    async def make() -> Any:
        async with connected(api, new_key()) as client:
            return await call(client, "generate_image", prompt="a secret circle")

    async def pry(made: Any) -> None:
        image = made["images"][0]["id"]
        async with connected(api, other_api_key) as client:
            for tool, arguments in (
                ("get_job", {"job_id": made["id"]}),
                ("cancel_job", {"job_id": made["id"]}),
                ("reproduce_image", {"image_id": image}),
                ("edit_image", {"image": image, "prompt": "x"}),
                ("edit_image", {"image": image}),
                ("search_images", {"image_id": image}),
            ):
                refused = await refusal(client, tool, **arguments)
                assert refused["code"] == "not_found", tool
            listed = await call(client, "list_jobs", limit=50)
            assert made["id"] not in [one["id"] for one in listed["jobs"]]
            for uri in (f"images/{image}", f"images/{image}/receipt", f"jobs/{made['id']}"):
                with pytest.raises(MCPError) as refused_:
                    await client.read_resource(f"darkroom://{uri}")
                assert refused_.value.error.data["code"] == "not_found"
            uris = [str(one.uri) for one in (await client.list_resources()).resources]
            assert not any(image in uri for uri in uris)
            with pytest.raises(MCPError) as refused_:
                await client.session.send_request(TaskRequest.of("get", made["id"]), GotTask)
            assert refused_.value.error.data["code"] == "not_found"

    run(pry(run(make())))


def test_scopes_and_quotas_are_as_elsewhere(
    api: ApiProcess, generate_worker: WorkerProcess, new_key: MakeKey
) -> None:
    async def ask(key: str, tool: str, **arguments: Any) -> Any:
        async with connected(api, key) as client:
            return await refusal(client, tool, **arguments)

    reader = new_key(scopes=["jobs:read"])
    refused = run(ask(reader, "generate_image", prompt="x"))
    assert (refused["code"], refused["status"]) == ("insufficient_scope", 403)
    assert run(ask(reader, "search_images"))["code"] == "insufficient_scope"
    assert run(ask(reader, "submit_batch", items=["x"]))["code"] == "insufficient_scope"
    poor = new_key(quotas=Quotas(gpu_seconds_per_day=1e-6))
    refused = run(ask(poor, "generate_image", prompt="x"))
    assert (refused["code"], refused["status"]) == ("gpu_seconds_exceeded", 429)
    assert refused["retry_after"] > 0
    slow = new_key(quotas=Quotas(requests_per_minute=1))
    with api.client(slow) as sender:
        assert sender.post("/mcp", json=initialize(), headers=ACCEPT).status_code == 200
        limited = sender.post("/mcp", json=initialize(), headers=ACCEPT)
    assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")


ACCEPT = {"Accept": "application/json, text/event-stream"}


def initialize(**fields: Any) -> dict[str, Any]:
    """The first message of the handshake."""
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params, **fields}


def test_the_door(api: ApiProcess) -> None:
    """What comes before any message is looked at, and messages that are none."""
    for key in (None, "drk_wrong"):
        with api.client(key) as stranger:
            refused = stranger.post("/mcp", json=initialize(), headers=ACCEPT)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.headers["www-authenticate"].startswith("Bearer")

    def post(origin: str | None = None, **headers: str) -> httpx2.Response:
        given = ACCEPT | headers | ({} if origin is None else {"Origin": origin})
        return api.http.post("/mcp", json=initialize(), headers=given)

    for origin in ("https://evil.example", "null", f"{api.url}.evil.example"):
        refused = post(origin)
        assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
    assert post(api.url).status_code == 200
    # No session is kept, so none is unknown, and a client may begin anywhere.
    assert post(**{"Mcp-Session-Id": "of-another-process"}).status_code == 200
    assert "mcp-session-id" not in post().headers
    for method in ("GET", "DELETE"):
        answer = api.http.request(method, "/mcp", headers=ACCEPT)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    listed = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    assert "generate_image" in api.http.post("/mcp", json=listed, headers=ACCEPT).text
    for body, status in (
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 90_000, 400),
        (b"[" * 100_001, 413),
        (b'"' + b"x" * (16 * 1024 * 1024) + b'"', 413),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": 3}', None),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "no/such"}', None),
    ):
        for version in ("2025-11-25", "2026-07-28", "1999-01-01"):
            headers = ACCEPT | {"Content-Type": "application/json", "Mcp-Protocol-Version": version}
            answer = api.http.post("/mcp", content=body, headers=headers)
            assert answer.status_code < 500, (body[:80], version, answer.text)
            if status is not None and version != "1999-01-01":
                assert answer.status_code == status, (body[:80], version, answer.text)
            assert "Traceback" not in answer.text
    assert api.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("mode", [pytest.param("legacy", marks=pytest.mark.long), "2026-07-28"])
def test_a_job_outlives_its_call(api: ApiProcess, mode: str) -> None:
    async def ask() -> None:
        async with connected(api, mode=mode) as client:
            result = await client.call_tool(
                "generate_image",
                {"prompt": "a waiting circle", "model": "unserved", "wait_seconds": 1},
            )
            made = result.structured_content
            assert (made["state"], result.is_error) == ("queued", False)
            assert made["warnings"][0]["code"] == "model_not_served"
            assert "get_job" in cast("Any", result.content[-1]).text
            stopped = await call(client, "cancel_job", job_id=made["id"])
            assert stopped["state"] == "canceled"
            ended = await call(client, "get_job", job_id=made["id"], wait_seconds=30)
            assert ended["state"] == "canceled"

    run(ask())


@pytest.mark.parametrize("mode", AGES)
def test_a_wait_ends_when_its_job_is_canceled(api: ApiProcess, mode: str) -> None:
    async def ask() -> Any:
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def progress(_: float, __: float | None, message: str | None) -> None:
            if not begun.done():
                begun.set_result((message or "").split()[0])

        async with connected(api, mode=mode) as client, connected(api) as other:
            waiting = asyncio.create_task(
                client.call_tool(
                    "generate_image",
                    {"prompt": "a stopped circle", "model": "unserved", "wait_seconds": 300},
                    progress_callback=cast("Any", progress),
                )
            )
            await call(other, "cancel_job", job_id=await begun)
            return await waiting

    result = run(ask())
    assert result.is_error
    assert result.structured_content["state"] == "canceled"


@pytest.mark.parametrize("mode", AGES)
def test_a_client_that_leaves_gives_its_place_back_and_its_job_goes_on(
    api: ApiProcess, new_key: MakeKey, mode: str
) -> None:
    key, prompt = new_key(), f"an abandoned circle of {mode}"

    async def leave() -> None:
        async with connected(api, key, mode) as client:
            begun = asyncio.Event()

            async def progress(_: float, __: float | None, ___: str | None) -> None:
                begun.set()

            waiting = asyncio.create_task(
                client.call_tool(
                    "generate_image",
                    {"prompt": prompt, "model": "unserved", "wait_seconds": 590},
                    progress_callback=cast("Any", progress),
                )
            )
            await begun.wait()
            waiting.cancel()

    for _ in range(3):
        run(leave())
    with api.client(key) as mine:
        jobs = mine.get("/v1/jobs").json()["data"]
        states = [one["state"] for one in jobs if one["prompt"] == prompt]
        assert states == ["queued"] * 3
        for one in jobs:
            mine.post(f"/v1/jobs/{one['id']}/cancel")


def test_waits_are_limited_for_each_key_and_end_with_their_client(
    environment: dict[str, str], api_key: str, tmp_path: Path
) -> None:
    limits = {"DARKROOM_MAX_WAITS_PER_KEY": "1"}
    slow = {"prompt": "a crowded circle", "model": "unserved", "wait_seconds": 300}
    jobs: list[str] = []

    async def crowd(api: ApiProcess, mode: str) -> None:
        async with connected(api, mode=mode) as client, connected(api) as other:
            begun = asyncio.Event()

            async def progress(_: float, __: float | None, message: str | None) -> None:
                jobs.append((message or "").split()[0])
                begun.set()

            waiting = asyncio.create_task(
                client.call_tool("generate_image", slow, progress_callback=cast("Any", progress))
            )
            await begun.wait()
            refused = await refusal(other, "generate_image", **slow)
            assert (refused["code"], refused["status"]) == ("too_many_waits", 429)
            quick = await call(other, "generate_image", **slow | {"wait_seconds": 0})
            await call(other, "cancel_job", job_id=quick["id"])
            jobs.append(quick["id"])
            waiting.cancel()

    async def wait_again(api: ApiProcess) -> bool:
        async with connected(api) as client:
            # It has ended: a wait for it takes a place, and is over at once.
            result = await client.call_tool("get_job", {"job_id": jobs[-1], "wait_seconds": 300})
            return not result.is_error

    narrow_environment, log = environment | limits, tmp_path / "api.log"
    with ApiProcess(narrow_environment, free_port(), api_key, log, factory=PATIENT) as narrow:
        for mode in AGES:
            run(crowd(narrow, mode))
            wait_until(lambda: run(wait_again(narrow)), what="the place of a client that left")
        for job in jobs:
            narrow.http.post(f"/v1/jobs/{job}/cancel")


@pytest.mark.long
@pytest.mark.parametrize("mode", AGES)
def test_in_memory(
    *,
    settings: Settings,
    api: ApiProcess,
    generate_worker: WorkerProcess,
    cpu_worker: WorkerProcess,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server itself, without HTTP: what its door would tell it of the request is put in."""
    be_patient(monkeypatch.setattr)
    app = create_app(settings)

    async def talk() -> None:
        async with app.router.lifespan_context(app):
            key = f"Bearer {api.key}".encode()
            scope = {"type": "http", "app": app, "headers": [(b"authorization", key)]}
            scope |= {RELEASE: lambda: None, "client": ("127.0.0.1", 1), "state": {}}
            request = Request(scope)
            scope[PRINCIPAL] = await authenticate(request, app.state.resources)

            async def put_in(ctx: Any, call_next: Any) -> Any:
                return await call_next(dataclasses.replace(ctx, request=request))

            server = build_server()
            server.middleware.append(put_in)
            async with mcp.Client(server, mode=mode) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == set(TOOLS)
                made = await call(client, "generate_image", prompt="a remembered circle", seed=3)
                assert (made["state"], made["seeds"]) == ("succeeded", [3])
                [image] = made["images"]
                file: Any = (await client.read_resource(image["resource"])).contents[0]
                assert Image.open(io.BytesIO(base64.b64decode(file.blob))).format == "PNG"
                again = await call(client, "reproduce_image", image_id=image["id"])
                assert again["verdict"] == "identical"
                found = await call(client, "search_images", query="a remembered circle")
                assert image["id"] in [hit["image"]["id"] for hit in found["hits"]]
                refused = await refusal(client, "get_job", job_id="job_1")
                assert refused["code"] == "not_found"

    run(talk())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    (
        *("prompt", "image", "job_id", "image_id", "batch_id", "items", "query", "limit", "after"),
        *("seed", "seeds", "width", "loras", "metadata", "session_id", "state", "defaults"),
    )
)
TOOL_NAMES = st.sampled_from(
    (
        *("edit_image", "get_job", "cancel_job", "list_jobs", "search_images"),
        *("reproduce_image", "submit_batch", "get_batch", "list_models", "generate_image"),
    )
)


@pytest.mark.long
@given(tool=TOOL_NAMES, arguments=st.dictionaries(NAMES | st.text(), JSON, max_size=4))
@hypothesis_settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_whatever_a_model_writes_is_answered(
    api: ApiProcess, tool: str, arguments: dict[str, Any]
) -> None:
    params = {"name": tool, "arguments": {"model": "unserved", "wait_seconds": 0} | arguments}
    if tool not in ("edit_image", "generate_image"):
        params["arguments"] = arguments
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    body = json.dumps(message).encode()
    answer = api.http.post(
        "/mcp", content=body, headers=ACCEPT | {"Content-Type": "application/json"}
    )
    assert answer.status_code < 500, answer.text
    assert "internal_error" not in answer.text
    assert "Traceback" not in answer.text


def test_resources(api: ApiProcess, generate_worker: WorkerProcess, new_key: MakeKey) -> None:
    key = new_key()

    async def read(mode: str) -> None:
        async with connected(api, key, mode) as client:
            made = await call(client, "generate_image", prompt="a resource", output_format="webp")
            image = made["images"][0]
            listed = await client.list_resources()
            uris = [str(one.uri) for one in listed.resources]
            assert uris[:2] == ["darkroom://models", image["resource"]]
            assert listed.resources[1].mime_type == "image/webp"
            templates = (await client.list_resource_templates()).resource_templates
            assert "darkroom://images/{image_id}/receipt" in [one.uri_template for one in templates]
            [file] = (await client.read_resource(image["resource"])).contents
            assert isinstance(file, mcp_types.BlobResourceContents)
            with api.client(key) as mine:
                facts = mine.get(f"/v1/images/{image['id']}").json()
                receipt = mine.get(f"/v1/images/{image['id']}/receipt").json()
            assert hashlib.sha256(base64.b64decode(file.blob)).hexdigest() == facts["sha256"]
            for uri, check in (
                (f"{image['resource']}/receipt", lambda read: read == receipt),
                (f"darkroom://jobs/{made['id']}", lambda read: read["state"] == "succeeded"),
                ("darkroom://models", lambda read: read["data"][0]["name"] == "sim"),
            ):
                [text] = (await client.read_resource(uri)).contents
                assert isinstance(text, mcp_types.TextResourceContents)
                assert check(json.loads(text.text)), uri
            for uri in ("darkroom://nothing", "file:///etc/passwd", "darkroom://jobs/../models"):
                with pytest.raises(MCPError) as refused:
                    await client.read_resource(uri)
                assert refused.value.error.code == -32602

    for mode in AGES:
        run(read(mode))


class TaskParams(mcp_types.RequestParams):
    task_id: str


class TaskRequest(mcp_types.Request[TaskParams, str]):
    method: str = "tasks/get"
    params: TaskParams
    name_param = "taskId"

    @classmethod
    def of(cls, name: str, task_id: str) -> "TaskRequest":
        return cls(method=f"tasks/{name}", params=TaskParams(task_id=task_id))


class GotTask(mcp_types.Result):
    task_id: str
    status: Literal["working", "completed", "cancelled"]
    ttl_ms: int | None = None
    poll_interval_ms: int
    result: dict[str, Any] | None = None


class CreatedTask(GotTask):
    result_type: Literal["task"] = "task"


class Tasks(ClientExtension):
    """SEP-2663 on the client's side, which the SDK leaves to its users."""

    identifier = TASKS

    def __init__(self, cancels: bool = False) -> None:
        self.cancels = cancels
        self.created: list[CreatedTask] = []

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=CreatedTask, resolve=self.resolve)]

    async def resolve(self, task: CreatedTask, ctx: ClaimContext) -> mcp_types.CallToolResult:
        self.created.append(task)
        if self.cancels:
            await ctx.session.send_request(
                TaskRequest.of("cancel", task.task_id), mcp_types.EmptyResult
            )
        while True:
            now = await ctx.session.send_request(TaskRequest.of("get", task.task_id), GotTask)
            if now.status != "working":
                break
            assert now.poll_interval_ms >= 500  # for those who have the time
            await asyncio.sleep(0.05)
        if now.status == "cancelled":
            return mcp_types.CallToolResult(content=[], is_error=True)
        return mcp_types.CallToolResult.model_validate(now.result)


def test_a_job_is_a_task_where_the_client_knows_tasks(
    api: ApiProcess, generate_worker: WorkerProcess
) -> None:
    tasks = Tasks()

    async def ask() -> None:
        async with connected(api, extensions=[tasks], mode="auto") as client:
            assert TASKS in (client.server_capabilities.extensions or {})
            result = await client.call_tool("generate_image", {"prompt": "a task"})
            assert [one.type for one in result.content] == ["text", "image", "resource_link"]
            made = result.structured_content
            assert (made["state"], made["id"]) == ("succeeded", tasks.created[0].task_id)
            assert (tasks.created[0].status, tasks.created[0].ttl_ms) == ("working", None)
            again = await call(client, "reproduce_image", image_id=made["images"][0]["id"])
            assert (again["verdict"], again["job"]["id"]) == ("identical", tasks.created[1].task_id)
            listed = await call(client, "list_jobs", limit=1)  # what is quick is no task
            assert listed["jobs"][0]["id"] == again["job"]["id"]
            assert len(tasks.created) == 2
            await client.session.send_request(
                TaskRequest.of("cancel", made["id"]), mcp_types.EmptyResult
            )
            await client.session.send_request(
                TaskRequest.of("update", made["id"]), mcp_types.EmptyResult
            )
            for name in ("get", "update", "cancel"):
                with pytest.raises(MCPError) as refused:
                    await client.session.send_request(
                        TaskRequest.of(name, "job_00000000000000000000000000"), GotTask
                    )
                assert refused.value.error.code == -32602

    run(ask())


def test_a_task_can_be_canceled(api: ApiProcess) -> None:
    tasks = Tasks(cancels=True)

    async def ask() -> Any:
        async with connected(api, extensions=[tasks]) as client:
            return await client.call_tool(
                "generate_image", {"prompt": "a canceled task", "model": "unserved"}
            )

    assert run(ask()).is_error
    job = api.http.get(f"/v1/jobs/{tasks.created[0].task_id}").json()
    assert job["state"] == "canceled"


def test_a_batch(
    api: ApiProcess, generate_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> None:
    async def ask() -> None:
        async with connected(api) as client:
            batch = await call(
                client,
                "submit_batch",
                items=["a batch of {owls|hens}", {"prompt": "one goose", "seed": 4}],
                defaults={"width": 64, "height": 64},
            )
            assert (batch["counts"]["total"], batch["session_id"]) == (3, "mcp")
            while batch["finished_at"] is None:
                await asyncio.sleep(0.2)
                batch = await call(client, "get_batch", batch_id=batch["id"])
            assert (batch["state"], batch["images"]["done"]) == ("succeeded", 3)

    run(ask())


@pytest.mark.long
@pytest.mark.parametrize("mode", ["auto", *AGES])
def test_over_stdio(
    api: ApiProcess, generate_worker: WorkerProcess, new_key: MakeKey, mode: str
) -> None:
    """`darkroom mcp`, as an agent starts it: tools, progress, resources, tasks, cancellation."""
    told: list[float] = []
    tasks = Tasks()

    async def progress(done: float, _: float | None, __: str | None) -> None:
        told.append(done)

    def program(key: str) -> StdioServerParameters:
        return StdioServerParameters(
            command=sys.executable,
            args=["-m", "darkroom.cli", "mcp"],
            env={**os.environ, "DARKROOM_URL": api.url, "DARKROOM_API_KEY": key},
        )

    async def ask() -> None:
        async with mcp.Client(program(api.key), mode=mode) as client:
            result = await client.call_tool(
                "generate_image",
                {"prompt": "through a pipe"},
                progress_callback=cast("Any", progress),
            )
            made = result.structured_content
            assert [one.type for one in result.content] == ["text", "image", "resource_link"]
            [file] = (await client.read_resource(made["images"][0]["resource"])).contents
            assert base64.b64decode(cast("Any", file).blob).startswith(b"\x89PNG")
            waiting = asyncio.create_task(
                client.call_tool("get_job", {"job_id": made["id"], "wait_seconds": 5})
            )
            names = [one.name for one in (await client.list_tools()).tools]
            assert "generate_image" in names
            assert not (await waiting).is_error
            begun = asyncio.Event()

            async def begin(_: float, __: float | None, ___: str | None) -> None:
                begun.set()

            slow = {"prompt": "unheard", "model": "unserved", "wait_seconds": 300}
            unheard = asyncio.create_task(
                client.call_tool("generate_image", slow, progress_callback=cast("Any", begin))
            )
            await begun.wait()
            unheard.cancel()  # the SDK then sends a cancellation
            with pytest.raises(asyncio.CancelledError):
                await unheard
            assert (await call(client, "list_jobs", limit=1))["jobs"][0]["prompt"] == "unheard"
        if mode != "legacy":
            async with mcp.Client(program(api.key), mode=mode, extensions=[tasks]) as client:
                made = await call(client, "generate_image", prompt="a task through a pipe")
                assert tasks.created[0].task_id == made["id"]

    run(ask())
    assert told == sorted(set(told))
    assert told[0] == 0

    async def refused() -> None:
        async with mcp.Client(program("drk_wrong"), mode="legacy") as client:
            await client.list_tools()

    with pytest.raises(ExceptionGroup) as problem:
        run(refused())
    assert problem.group_contains(MCPError, match="not an API key")


def test_it_can_be_turned_off(environment: dict[str, str], api_key: str, tmp_path: Path) -> None:
    off = environment | {"DARKROOM_COMPAT_MCP": "false"}
    with ApiProcess(off, free_port(), api_key, tmp_path / "api.log", factory=PATIENT) as without:
        answer = without.http.post("/mcp", json=initialize(), headers=ACCEPT)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

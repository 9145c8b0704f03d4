"""Every operation of the OpenAPI document, with each of its parameters, can be had from the client.

A client whose connections end in this test is asked for everything; what it sends is compared with
what the API's own document describes.
"""

import asyncio
import contextlib
import inspect
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.app import create_app
from darkroom import AsyncClient, Client, DarkroomError, Image
from darkroom.types import requests
from shared.core.settings import Settings

IMAGE = Image(
    id="img_1",
    seed=1,
    width=64,
    height=64,
    content_type="image/png",
    byte_size=1,
    sha256="",
    url="http://storage/",
)
TIME = datetime(2026, 1, 31, 12, tzinfo=UTC)
PAGE: dict[str, Any] = {"page_size": 3, "after": "c"}
FILTERS: dict[str, Any] = {
    **{"session_id": "s", "model": "m", "seed": 1, "kind": "txt2img", "width": 64, "height": 64},
    **{
        "created_after": TIME,
        "created_before": TIME,
        "starred": True,
        "min_score": 0.5,
        "diversity": True,
        "fold": True,
    },
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "root": lambda c: c.health.root(),
    "health.live": lambda c: c.health.live(),
    "health.ready": lambda c: c.health.ready(),
    "problems.get": lambda c: c.health.problem("not_found"),
    "jobs.submit": lambda c: c.jobs.submit("a cat", wait=5),
    "jobs.list": lambda c: c.jobs.list(
        state=["queued"], session_id="s", created_after=TIME, created_before=TIME, **PAGE
    ).page(),
    "jobs.get": lambda c: c.jobs.wait("job_1", 5),
    "jobs.delete": lambda c: c.jobs.delete("job_1"),
    "jobs.cancel": lambda c: c.jobs.cancel("job_1"),
    "jobs.retry": lambda c: c.jobs.retry("job_1"),
    "jobs.events": lambda c: c.jobs.events("job_1", previews=True, after="1-0"),
    "jobs.stream_ticket": lambda c: c.jobs.stream_ticket("job_1"),
    "jobs.images": lambda c: c.jobs.images("job_1").page(),
    "images.get": lambda c: c.images.get("img_1"),
    "images.delete": lambda c: c.images.delete("img_1"),
    "images.restore": lambda c: c.images.restore("img_1"),
    "images.provenance": lambda c: c.images.provenance("img_1"),
    "images.content": lambda c: c.images.download(IMAGE, through_api=True, attachment=True),
    "images.thumbnail": lambda c: c.images.thumbnail("img_1"),
    "images.receipt": lambda c: c.images.receipt("img_1"),
    "images.reproduce": lambda c: c.images.reproduce("img_1", job="job_1", timeout=1),
    "images.upscale": lambda c: c.images.upscale("img_1", 2, "latent", strength=0.5, steps=5),
    "images.inspect": lambda c: c.images.inspect(b"file"),
    "images.star": lambda c: c.images.star("img_1"),
    "images.unstar": lambda c: c.images.unstar("img_1"),
    "uploads.create": lambda c: c.uploads.create(("a.png", b"file")),
    "uploads.delete": lambda c: c.uploads.delete("upl_1"),
    "uploads.get": lambda c: c.uploads.get("upl_1"),
    "uploads.list": lambda c: c.uploads.list(**PAGE).page(),
    "loras.list": lambda c: c.loras.list().page(),
    "loras.create": lambda c: c.loras.create(("a.safetensors", b"x"), name="a", family="sd"),
    "loras.delete": lambda c: c.loras.delete("a"),
    "models.list": lambda c: c.models.list().page(),
    "usage.get": lambda c: c.usage(),
    "keys.create": lambda c: c.keys.create("a key", scopes=["jobs"]),
    "keys.list": lambda c: c.keys.list(**PAGE).page(),
    "keys.revoke": lambda c: c.keys.revoke("k"),
    "search.query": lambda c: c.search("a cat", rank="similarity", **FILTERS, **PAGE).page(),
    "search.like": lambda c: c.images.similar("img_1", **FILTERS, **PAGE).page(),
    "sessions.list": lambda c: c.sessions.list(**PAGE).page(),
    "sessions.get": lambda c: c.sessions.get("s"),
    "sessions.delete": lambda c: c.sessions.delete("s"),
    "sessions.images": lambda c: c.sessions.images("s", "a cat", **PAGE).page(),
    "prompts.recommendations": lambda c: c.prompts.recommend("a", session_id="s", limit=3),
    "batches.create": lambda c: c.batches.dry_run(["a cat"]),
    "batches.list": lambda c: c.batches.list(state="running", **PAGE).page(),
    "batches.get": lambda c: c.batches.get("batch_1"),
    "batches.update": lambda c: c.batches.update("batch_1", priority=9),
    "batches.pause": lambda c: c.batches.pause("batch_1"),
    "batches.resume": lambda c: c.batches.resume("batch_1"),
    "batches.cancel": lambda c: c.batches.cancel("batch_1"),
    "batches.retry_failed": lambda c: c.batches.retry_failed("batch_1"),
    "batches.items": lambda c: c.batches.items(
        "batch_1", state="failed", custom_id="x", **PAGE
    ).page(),
    "batches.results": lambda c: c.batches.results("batch_1", follow=False),
    "batches.errors": lambda c: c.batches.errors("batch_1"),
    "batches.archive": lambda c: c.batches.archive("batch_1", "batch.zip"),
    "batches.contact_sheet": lambda c: c.batches.contact_sheet("batch_1", limit=3, columns=3),
    "batches.files.create": lambda c: c.batches.files.create(b'"a cat"'),
    "batches.files.get": lambda c: c.batches.files.get("upl_1"),
    "batches.files.delete": lambda c: c.batches.files.delete("upl_1"),
    "webhook_endpoints.create": lambda c: c.webhooks.endpoints.create("https://example.com"),
    "webhook_endpoints.list": lambda c: c.webhooks.endpoints.list(**PAGE).page(),
    "webhook_endpoints.get": lambda c: c.webhooks.endpoints.get("whe_1"),
    "webhook_endpoints.update": lambda c: c.webhooks.endpoints.update("whe_1", enabled=True),
    "webhook_endpoints.delete": lambda c: c.webhooks.endpoints.delete("whe_1"),
    "webhook_endpoints.rotate_secret": lambda c: c.webhooks.endpoints.rotate_secret("whe_1"),
    "webhook_endpoints.test": lambda c: c.webhooks.endpoints.test("whe_1"),
    "webhook_endpoints.redeliver": lambda c: c.webhooks.endpoints.redeliver(
        "whe_1", since=TIME, until=TIME, state="all"
    ),
    "webhook_deliveries.list": lambda c: c.webhooks.deliveries.list(
        endpoint="whe_1", job="job_1", batch="b", state="failed", event="job.failed", **PAGE
    ).page(),
    "webhook_deliveries.get": lambda c: c.webhooks.deliveries.get("whd_1"),
    "webhook_deliveries.redeliver": lambda c: c.webhooks.deliveries.redeliver("whd_1"),
    "webhook_secret.get": lambda c: c.webhooks.secret.get(),
    "webhook_secret.rotate": lambda c: c.webhooks.secret.rotate(),
    "queues.list": lambda c: c.queues.list().page(),
    "workers.list": lambda c: c.workers.list().page(),
    "workers.get": lambda c: c.workers.get("gpu-0"),
    "workers.drain": lambda c: c.workers.drain("gpu-0"),
    "workers.resume": lambda c: c.workers.resume("gpu-0"),
}
ALSO: dict[str, Callable[[Any], Any]] = {
    "jobs.submit": lambda c: c.jobs.dry_run("a cat", seed=1, init_image=b"file"),
    "batches.create": lambda c: c.batches.submit(file=("a.csv", b"prompt\na cat"), priority=3),
    "jobs.get": lambda c: c.jobs.get("job_1"),
}
"""Second ways to the same operation, which send what the first does not."""

NOT_NEEDED = {
    "if-none-match",  # waiting and events tell what is new
    "range",  # images are some megabytes and are read whole
    "if-range",
    "last_event_id",  # for clients that cannot set the header
}
"""Parameters that no method sends, and why."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The API's OpenAPI document; nothing is connected to for it."""
    settings = Settings(
        database_url="postgresql://darkroom:a-long-enough-password@127.0.0.1/none",
        redis_url="redis://:a-long-enough-password@127.0.0.1/0",
        s3_endpoint="http://127.0.0.1:1",
        s3_access_key="access-key-of-nobody",
        s3_secret_key="a-long-enough-secret-key-of-nobody",
    )
    found: dict[str, Any] = create_app(settings).openapi()
    return found


def operations(document: dict[str, Any]) -> dict[str, tuple[str, str, dict[str, set[str]]]]:
    """Operation id -> method, pattern of its path, names of parameters by their place."""
    found = {}
    for path, methods in document["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        for method, operation in methods.items():
            if {"openai", "a1111", "huggingface"} & set(operation["tags"]):
                continue  # for others' clients
            named: dict[str, set[str]] = {"query": set(), "header": set(), "path": set()}
            for parameter in operation.get("parameters", []):
                named[parameter["in"]].add(parameter["name"].lower())
            found[operation["operationId"]] = (method.upper(), pattern, named)
    return found


def sent_by(ask: Callable[[Any], Any]) -> list[httpx2.Request]:
    """What the blocking client sends, and the other one exactly as well."""
    by_blocking: list[httpx2.Request] = []
    by_other: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        by_blocking.append(request)
        return httpx2.Response(200, json={})

    async def answer_async(request: httpx2.Request) -> httpx2.Response:
        by_other.append(request)
        return httpx2.Response(200, json={})

    async def run() -> None:
        transport = httpx2.MockTransport(answer_async)
        async with AsyncClient("http://x", "drk_a_b", transport=transport) as client:
            with contextlib.suppress(DarkroomError):
                asked = ask(client)
                await (anext(asked) if inspect.isasyncgen(asked) else asked)

    client = Client("http://x", "drk_a_b", transport=httpx2.MockTransport(answer))
    with client, contextlib.suppress(DarkroomError):
        asked = ask(client)
        if inspect.isgenerator(asked):
            next(asked)
    asyncio.run(run())
    facts = [[(each.method, each.url) for each in sent] for sent in (by_blocking, by_other)]
    assert facts[0] == facts[1]
    return by_blocking


def test_every_operation_can_be_reached(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = operations(document)
    assert set(CALLS) == set(described)
    for name, (method, pattern, parameters) in described.items():
        sent = [request for way in (CALLS, ALSO) if name in way for request in sent_by(way[name])]
        assert sent, f"{name} sends nothing"
        for request in sent:
            assert request.method == method, name
            assert re.fullmatch(pattern, request.url.path), name
        queries = {pair for request in sent for pair in request.url.params}
        headers = {pair for request in sent for pair in request.headers}
        missing = (parameters["query"] - queries) | (parameters["header"] - headers)
        assert missing <= NOT_NEEDED, f"{name} never sends {missing - NOT_NEEDED}"
        assert queries <= parameters["query"], f"{name} knows no {queries - parameters['query']}"


def test_every_field_of_a_request_is_a_keyword(document: dict[str, Any]) -> None:
    """The client refuses names that it does not know, so that it has to know all."""
    schemas = document["components"]["schemas"]
    for schema, kind, named in (
        ("JobSubmission", requests.JobOptions, {"prompt"}),
        ("BatchSubmission", requests.BatchOptions, {"items", "format", "upload_id"}),
        ("Hires", requests.HiresOptions, set()),
        ("Control", requests.ControlOptions, set()),
        ("Reference", requests.ReferenceOptions, set()),
        ("Expand", requests.ExpandOptions, set()),
        ("LoraSubmission", requests.LoraOptions, set()),
    ):
        assert set(schemas[schema]["properties"]) == set(kind.__annotations__) | named
    parameters = document["paths"]["/v1/search"]["get"]["parameters"]
    filters = {each["name"] for each in parameters if each["in"] == "query"}
    assert filters - {"q", "rank", "limit", "after"} == set(
        requests.SearchFilters.__annotations__
    ) - {"metadata"}

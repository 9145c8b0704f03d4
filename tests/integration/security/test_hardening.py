"""What no single request shows: logs, headers, CORS, and what refuses to start."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from PIL import Image

from api.admin.keys import NoLiveKey, require_live_key
from api.app import create_app, open_resources
from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.keys import parse_key
from shared.core.logging import configure_logging
from shared.core.settings import Settings
from tests.conftest import MIGRATED
from tests.images import encode
from tests.processes import ApiProcess, free_port, slowness, wait_until


def test_a_log_shows_who_asked_but_no_secret(guarded: ApiProcess) -> None:
    """The log is at its most talkative; the key comes as header, path, query and body."""
    key = parse_key(guarded.key)
    assert key is not None
    secret = guarded.key.removeprefix(f"drk_{key.id}_")
    http = guarded.http
    http.get(f"/v1/jobs/{guarded.key}", params={"after": guarded.key})
    http.post("/v1/jobs", json={"prompt": guarded.key, guarded.key: guarded.key})
    http.post("/v1/jobs", content=guarded.key, headers={"Content-Type": "application/json"})
    http.get("/v1/jobs", headers={"X-Request-Id": guarded.key[:64]})
    with guarded.client(guarded.key[:-1] + "x") as mistyped:
        mistyped.get("/v1/jobs")
    done = wait_until(
        lambda: log if "mistyped-done" in (log := _after(guarded, http)) else None, what="the log"
    )
    assert f"drk_{key.id}_[redacted]" in done
    assert secret not in done
    assert secret[:20] not in done


def test_a_log_shows_no_ticket(guarded: ApiProcess) -> None:
    http = guarded.http
    job = http.post("/v1/jobs", json={"prompt": "x"}).json()
    http.post(f"/v1/jobs/{job['id']}/cancel")
    url = http.post(f"/v1/jobs/{job['id']}/stream-ticket").json()["url"]
    ticket = url.partition("?ticket=")[2]
    with guarded.client(None) as nobody:
        assert nobody.get(url).status_code == 200
        nobody.get(f"/v1/jobs/{ticket}", params={"ticket": ticket})
        nobody.get(f"/v1/{ticket}")
    done = wait_until(
        lambda: (
            log if f"/v1/drt_{ticket.split('_')[1]}" in (log := _after(guarded, http)) else None
        ),
        what="the log",
    )
    assert ticket.split("_", 3)[3] not in done


def test_no_line_is_written_of_a_request_with_its_query(settings: Settings) -> None:
    """uvicorn's access log would have tickets in it."""
    configure_logging(settings.model_copy(update={"log_level": "debug"}))
    assert not logging.getLogger("uvicorn.access").isEnabledFor(logging.INFO)
    configure_logging(settings)


def _after(guarded: ApiProcess, http: httpx2.Client) -> str:
    http.get("/v1/mistyped-done")
    return guarded.log.read_text()


def test_answers_carry_their_protection_and_no_internals(guarded: ApiProcess) -> None:
    for path in ("/", "/v1/jobs", "/v1/nothing", "/v1/jobs/x", "/openapi.json", "/docs"):
        answer = guarded.http.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert not {"Traceback", "psycopg", "sqlalchemy"} & set(answer.text.split())


def test_presigned_urls_live_for_fifteen_minutes_at_most(guarded: ApiProcess) -> None:
    image = encode(Image.new("RGB", (64, 64)), "PNG")
    upload = guarded.http.post("/v1/uploads", files={"file": ("a.png", image)}).json()
    query = parse_qs(urlsplit(upload["url"]).query)
    assert int(query["X-Amz-Expires"][0]) <= 900


@pytest.mark.parametrize("origin", ["https://studio.example", "https://evil.example"])
def test_cors_is_for_the_sites_that_the_operator_names(settings: Settings, origin: str) -> None:
    open_to = settings.model_copy(update={"cors_origins": ("https://studio.example",)})

    async def preflight() -> httpx2.Response:
        app = create_app(open_to)
        client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://api")
        async with app.router.lifespan_context(app), client:
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            return await client.options("/v1/jobs", headers=asked)

    allowed = asyncio.run(preflight()).headers.get("Access-Control-Allow-Origin")
    assert allowed == (origin if origin == "https://studio.example" else None)


@pytest.fixture(scope="module")
def empty_database(servers: EmbeddedServers) -> Iterator[str]:
    """Migrated, and without any key."""
    url = servers.postgres.create_database("no_keys", template=MIGRATED)
    yield url
    servers.postgres.drop_database("no_keys")


def test_without_a_live_key_it_does_not_start_outside_the_local_stack(
    settings: Settings, empty_database: str
) -> None:
    async def check(environment: str) -> None:
        chosen = Settings.model_validate(
            {**settings.model_dump(), "database_url": empty_database, "environment": environment}
        )
        async with open_resources(chosen) as held:
            await require_live_key(held)

    asyncio.run(check("local"))
    with pytest.raises(NoLiveKey, match="darkroom-server admin keys create"):
        asyncio.run(check("production"))
    create_key(empty_database, tenant="first", name="first", scopes=["admin"])
    asyncio.run(check("production"))


def test_a_weak_secret_ends_the_process_with_a_sentence(
    environment: dict[str, str], tmp_path: Path
) -> None:
    weak = {
        **environment,
        "DARKROOM_ENVIRONMENT": "production",
        "DARKROOM_S3_SECRET_KEY": "minioadmin",
    }
    process = ApiProcess(weak, free_port(), "none", tmp_path / "api.log")
    process.start()
    assert process.child.wait(60 * slowness()) != 0
    said = process.log.read_text("utf-8")
    assert "DARKROOM_S3_SECRET_KEY is a well-known default" in said
    assert environment["DARKROOM_DATABASE_URL"] not in said

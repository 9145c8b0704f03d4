"""A real browser's `EventSource` follows a job with a ticket, across a cut line, to its end."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy.orm import Session, sessionmaker

from tests.integration.api.relay import Mode, Relay
from tests.integration.api.test_polling import claim, succeed, tell
from tests.processes import ApiProcess, free_port, wait_until

CHROMIUM = Path("/usr/bin/chromium")
PAGE = b"<!doctype html><title>a page of another site</title>"
FOLLOW = """url => {
  window.seen = []; window.ids = []; window.opened = 0; window.failed = false;
  const source = new EventSource(url);
  source.onopen = () => { window.opened += 1; };
  source.onerror = () => { window.failed = source.readyState === EventSource.CLOSED; };
  for (const kind of ["job", "progress"]) source.addEventListener(kind, event => {
    const data = JSON.parse(event.data);
    const said = kind === "job" ? data.state : `step ${data.step}`;
    // One that came back may be told again what the database has.
    const states = window.seen.filter(one => !one.startsWith("step"));
    if (kind !== "job" || said !== states.at(-1)) window.seen.push(said);
    window.ids.push(event.lastEventId);
  });
}"""


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """An empty page."""
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name there
        """Stay silent."""


@pytest.fixture
def site() -> Iterator[str]:
    """The origin of a page that is not the API's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_page(site: str) -> Iterator[Callable[[], Any]]:
    """Opens the site's page in Chromium."""
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )

        def page() -> Any:
            opened = browser.new_page()
            opened.goto(site)
            return opened

        yield page
        browser.close()


@pytest.mark.long
@pytest.mark.browser
def test_an_event_source_of_an_allowed_site_follows_a_job_to_its_end(
    *,
    environment: dict[str, str],
    make_key: Callable[..., str],
    site: str,
    open_page: Callable[[], Any],
    database: sessionmaker[Session],
    redis_client: "redis.Redis",
    tmp_path: Path,
) -> None:
    own = {
        **environment,
        "DARKROOM_MODELS_FILE": str(Path(__file__).with_name("models.toml")),
        "DARKROOM_CORS_ORIGINS": f'["{site}"]',
    }
    with ApiProcess(own, free_port(), make_key("browser"), tmp_path / "api.log") as api:
        line = Relay(api.url)
        job = api.http.post("/v1/jobs", json={"prompt": "a red circle"}).json()
        ticket = api.http.post(f"/v1/jobs/{job['id']}/stream-ticket").json()
        page = open_page()

        def seen() -> list[str]:
            page.wait_for_timeout(20)  # lets the browser's events in
            found: list[str] = page.evaluate("window.seen")
            return found

        page.evaluate(FOLLOW, ticket["url"].replace(api.url, line.url))
        wait_until(lambda: seen() == ["queued"], what="the first snapshot")
        claim(database, job)
        tell(redis_client, job, "job", state="running", sequence=1)
        at = {"image_index": 0, "steps": 8}
        tell(redis_client, job, "progress", **at, step=1, fraction=0.125)
        wait_until(lambda: seen()[1:] == ["running", "step 1"], what="progress")
        with line.set_to(Mode.REFUSE):
            # What happens while the line is cut is made up for by Last-Event-ID.
            tell(redis_client, job, "progress", **at, step=2, fraction=0.25)
        wait_until(lambda: seen()[3:] == ["step 2"], what="what was missed")
        succeed(database, job)
        tell(redis_client, job, "job", state="succeeded", sequence=2)
        wait_until(lambda: seen()[4:] == ["succeeded"], what="the end")
        # It comes back once, is told 204, and stays away.
        wait_until(lambda: seen() and page.evaluate("window.failed"), what="the closed source")
        assert len(set(page.evaluate("window.ids"))) >= 4
        line.close()


@pytest.mark.browser
def test_an_event_source_of_another_site_gets_nothing(
    api: ApiProcess, open_page: Callable[[], Any]
) -> None:
    job = api.http.post("/v1/jobs", json={"prompt": "x", "model": "demo"}).json()
    ticket = api.http.post(f"/v1/jobs/{job['id']}/stream-ticket").json()
    page = open_page()
    page.evaluate(FOLLOW, ticket["url"])
    page.wait_for_function("window.failed")
    assert page.evaluate("window.seen") == []

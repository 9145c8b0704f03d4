"""Initial images by URL: fetched through the guard, kept as an upload, refused with a code."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id
from shared.images.models import Upload
from shared.jobs.models import Job
from tests.images import png
from tests.integration.security.conftest import MakeClient


class _Host(BaseHTTPRequestHandler):
    """A host of images and of what is not one."""

    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, body = {
            "/image.png": (200, png(height=96)),
            "/page.html": (200, b"<script>EVIL</script>"),
            "/missing": (404, b""),
            "/redirect": (302, b""),
            "/huge": (200, b"\x89PNG\r\n\x1a\n" + bytes(11 * 1024 * 1024)),
        }[self.path]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/image.png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[ThreadingHTTPServer]:
    """It listens on loopback, which the local stack allows."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def submit(client: httpx2.Client, url: str, **headers: str) -> httpx2.Response:
    body = {"prompt": "a red circle", "init_image": url}
    return client.post("/v1/jobs", json=body, headers=headers)


def test_an_image_by_url_becomes_an_upload_before_the_job_runs(
    client_with: MakeClient, host: ThreadingHTTPServer, database: sessionmaker[Session]
) -> None:
    client = client_with()
    url = f"http://127.0.0.1:{host.server_port}/image.png"
    first = submit(client, url, **{"Idempotency-Key": "by url"})
    again = submit(client, url, **{"Idempotency-Key": "by url"})
    assert (first.status_code, first.json()["kind"]) == (202, "img2img")
    assert again.json() == first.json()
    assert host.asked.count("/image.png") == 1  # type: ignore[attr-defined]
    upload_id = first.json()["init_image"]
    upload = client.get(f"/v1/uploads/{upload_id}").json()
    assert (upload["width"], upload["height"], upload["content_type"]) == (64, 96, "image/png")
    with database() as session:
        job = session.scalars(
            select(Job).where(Job.id == decode_id("job", first.json()["id"]))
        ).one()
        kept = session.scalars(select(Upload).where(Upload.id == decode_id("upl", upload_id))).one()
    assert job.init_image == {"ref": upload_id, "s3_key": kept.s3_key, "sha256": upload["sha256"]}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/page.html", "image_not_recognized"),
        ("/missing", "fetch_refused"),
        ("/redirect", "redirect_not_followed"),
        ("/huge", "image_too_large"),
    ],
)
def test_what_is_no_image_is_refused(
    client_with: MakeClient, host: ThreadingHTTPServer, path: str, code: str
) -> None:
    refused = submit(client_with(), f"http://127.0.0.1:{host.server_port}{path}")
    assert refused.status_code == 422
    assert (refused.json()["errors"][0]["pointer"], refused.json()["errors"][0]["code"]) == (
        "/init_image", code,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://169.254.169.254/latest/meta-data/", "address_not_allowed"),
        ("http://10.0.0.1/image.png", "address_not_allowed"),
        ("https://[::ffff:10.0.0.1]/image.png", "address_not_allowed"),
        ("https://0177.0.0.1/image.png", "url_not_allowed"),
        ("https://user@example.com/image.png", "url_not_allowed"),
        ("https://93.184.216.34:8443/image.png", "url_not_allowed"),
        ("https://image.invalid/a.png", "unresolvable_host"),
    ],
)
def test_the_guard_stands_before_it(client_with: MakeClient, url: str, code: str) -> None:
    refused = submit(client_with(), url)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (422, code)

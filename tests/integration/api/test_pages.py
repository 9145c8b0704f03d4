"""The API describes itself: its document, cheap to ask for, and two pages that need no internet."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

CHROMIUM = Path("/usr/bin/chromium")


def test_the_document_is_not_sent_twice_to_who_has_it(http: httpx2.Client) -> None:
    plain = http.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    again = {"If-None-Match": plain.headers["etag"], "Accept-Encoding": "identity"}
    unchanged = http.get("/openapi.json", headers=again)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert unchanged.headers["etag"] == plain.headers["etag"]


def test_the_document_comes_packed_to_who_can_unpack_it(http: httpx2.Client) -> None:
    plain = http.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    with http.stream("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"}) as answer:
        packed = b"".join(answer.iter_raw())
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["vary"] == "Accept-Encoding"
        assert answer.headers["etag"] != plain.headers["etag"]
    assert gzip.decompress(packed) == plain.content
    assert len(packed) * 4 < len(plain.content)


def test_the_pages_name_no_other_site(http: httpx2.Client) -> None:
    for path in ("/docs", "/redoc"):
        page = http.get(path)
        assert "://" not in page.text
        assert "http" not in page.headers["content-security-policy"]
        assert "script-src 'self';" in page.headers["content-security-policy"]


@pytest.fixture
def open_page() -> Iterator[Callable[[str], Any]]:
    """Opens a page in a Chromium that reaches this machine and nothing else."""
    if not CHROMIUM.exists():
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", offline]
        )

        def visit(url: str) -> Any:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.complaints = []
            page.on("pageerror", lambda error: page.complaints.append(str(error)))
            page.on(
                "console",
                lambda line: page.complaints.append(line.text) if line.type == "error" else None,
            )
            page.goto(url)
            return page

        yield visit
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_show_the_api_without_the_internet(
    http: httpx2.Client, open_page: Callable[[str], Any], path: str, tmp_path: Path
) -> None:
    page = open_page(str(http.base_url.join(path)))
    for text in ("Submit a job", "Star an image", "Errors are RFC 9457 problems"):
        # Redoc repeats titles in a menu that begins folded.
        page.get_by_text(text).first.wait_for(state="attached", timeout=60_000)
    page.screenshot(path=tmp_path / "page.png")
    # The policy keeps Redoc from fetching its maker's logo, which is as it should be.
    assert [line for line in page.complaints if "redoc.ly" not in line] == []

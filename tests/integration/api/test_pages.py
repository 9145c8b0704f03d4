"""The API describes itself: its document, cheap to ask for, and two pages that need no internet."""

import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from api.core.openapi import TAGS
from darkroom import Client
from tests.processes import PROJECT, ApiProcess, WorkerProcess, wait_until

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


PLACEHOLDERS = {
    "image_id": "img_01jd4zk3v8e0x9m5q7r2t6w8ya",
    "batch_id": "batch_01jd4zk3v8e0x9m5q7r2t6w8ya",
    "upload_id": "upl_01jd4zk3v8e0x9m5q7r2t6w8ya",
}
"""IDs in the document that a reader replaces by their own."""


def documented_bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Method, path, name and value of each example of a JSON body."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is not None:
                assert content.get("examples"), f"{method} {path} has no example"
                for name, example in content["examples"].items():
                    yield method, path, name, example["value"]


@pytest.mark.long
@pytest.mark.usefixtures("generate_worker", "cpu_worker")
def test_every_documented_body_can_be_sent_as_it_is(
    api: ApiProcess, make_key: Callable[..., str]
) -> None:
    scopes = ("jobs", "images", "search", "batches", "webhooks", "admin", "operator")
    headers = {"Authorization": f"Bearer {make_key('reader', scopes)}"}
    with Client(api.url, headers["Authorization"].split()[1]) as client:
        own = {
            "image_id": client.generate("a red circle", steps=2)[0].id,
            "batch_id": client.batches.submit(["a hat"], defaults={"model": "held"}).id,
            "upload_id": client.batches.files.create(b'{"prompt": "a scarf"}').id,
            "endpoint_id": client.webhooks.endpoints.create("https://example.com/h").id,
        }
    refused = []
    with httpx2.Client(base_url=api.url, headers=headers, timeout=90) as http:
        # A CPU worker that has just begun has yet to load what makes vectors of queries.
        wait_until(lambda: http.get("/v1/search?q=a").is_success, 60, "the search")
        for method, path, name, value in documented_bodies(http.get("/openapi.json").json()):
            body = json.dumps(value)
            for kind, placeholder in PLACEHOLDERS.items():
                body = body.replace(placeholder, own[kind])
            answer = http.request(
                method,
                path.format(**own),
                content=body,
                headers={"Content-Type": "application/json"},
            )
            if not answer.is_success:
                refused.append(f"{method} {path}, {name}: {answer.status_code} {answer.text}")
        http.post(f"/v1/batches/{own['batch_id']}/cancel")
    assert refused == []


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
            page: Any = browser.new_page(viewport={"width": 1280, "height": 900})
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


@pytest.mark.long
@pytest.mark.browser
def test_the_page_groups_the_api_in_the_order_people_need(
    http: httpx2.Client, open_page: Callable[[str], Any]
) -> None:
    page = open_page(str(http.base_url.join("/docs")))
    page.locator(".opblock").first.wait_for(timeout=60_000)
    groups = page.locator(".opblock-tag").evaluate_all("tags => tags.map(tag => tag.dataset.tag)")
    assert groups == [*TAGS]
    assert page.locator(".opblock").count() == 9, "only the first group is open"
    page.locator(".opblock-summary-control").first.click()
    body = page.locator("textarea.body-param__text").first
    body.wait_for(timeout=60_000)
    assert json.loads(body.input_value()) == {
        "prompt": "a red circle on a white background",
        "seed": 7,
    }
    assert page.complaints == []


@pytest.mark.long
@pytest.mark.browser
@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_show_the_api_without_the_internet(
    http: httpx2.Client, open_page: Callable[[str], Any], path: str, tmp_path: Path
) -> None:
    page = open_page(str(http.base_url.join(path)))
    for text in ("Submit a job", "Errors are RFC 9457 problems"):
        # Redoc repeats titles in a menu that begins folded.
        page.get_by_text(text).first.wait_for(state="attached", timeout=60_000)
    page.screenshot(path=tmp_path / "page.png")
    # The policy keeps Redoc from fetching its maker's logo, which is as it should be.
    assert [line for line in page.complaints if "redoc.ly" not in line] == []


# --- The examples of docs/http-api.md, run as printed, give what is printed beneath them ---


_EXAMPLE = re.compile(
    r"```sh\n(?P<script>.*?)```\n```(?P<kind>json|text)\n(?P<answer>.*?)```", re.S
)


class Example(NamedTuple):
    """A script of the documentation, and the answer printed beneath it."""

    script: str
    kind: str
    answer: str


def examples() -> list[Example]:
    text = (PROJECT / "docs" / "http-api.md").read_text("utf-8")
    found = [Example(**match.groupdict()) for match in _EXAMPLE.finditer(text)]
    assert len(found) == text.count("```sh"), "an example has no answer beneath it"
    return found


def run_all(found: list[Example], folder: Path, environment: dict[str, str]) -> list[str]:
    """Run the scripts one after the other in one shell, as a reader would; their outputs."""
    mark = "=== next ==="
    script = f"\necho '{mark}'\n".join(example.script for example in found)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"
    return done.stdout.split(f"{mark}\n")


def assert_same_shape(printed: Any, real: Any, where: str) -> None:
    """Whatever is printed is there, of the same type; lists are compared by their first entry."""
    if isinstance(printed, dict):
        assert isinstance(real, dict), where
        for name, value in printed.items():
            assert name in real, f"{where}.{name} is printed but not there"
            assert_same_shape(value, real[name], f"{where}.{name}")
    elif isinstance(printed, list):
        assert isinstance(real, list), where
        assert bool(printed) == bool(real), where
        if printed:
            assert_same_shape(printed[0], real[0], f"{where}[0]")
    else:
        assert type(printed) is type(real), f"{where}: {printed!r} is printed, {real!r} came"


FIXED = {"state", "verdict", "kind", "code", "status", "seed", "seeds", "pointer", "stored"}
"""Fields whose printed value must be the real one, not just its type."""


def fixed_values(document: Any) -> list[tuple[str, Any]]:
    if isinstance(document, dict):
        own = [(name, value) for name, value in document.items() if name in FIXED]
        return own + [pair for value in document.values() for pair in fixed_values(value)]
    return (
        [pair for value in document[:1] for pair in fixed_values(value)]
        if isinstance(document, list)
        else []
    )


@pytest.mark.long
@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples use curl")
def test_the_examples_do_what_they_say(
    api: ApiProcess, generate_worker: WorkerProcess, tmp_path: Path
) -> None:
    found = examples()
    environment = {"DARKROOM_URL": api.url, "DARKROOM_API_KEY": api.key}
    outputs = run_all(found, tmp_path, environment)
    for example, output in zip(found, outputs, strict=True):
        if example.kind == "text":
            assert output.strip() == example.answer.strip(), example.script
            continue
        printed, real = json.loads(example.answer), json.loads(output)
        assert_same_shape(printed, real, "answer")
        there = fixed_values(real)
        for pair in fixed_values(printed):
            assert pair in there, f"{pair} is printed, but not in the answer to:\n{example.script}"

"""The page as Streamlit's own AppTest runs it, against the real API and the simulated GPU."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import streamlit as st
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

import darkroom
from tests.processes import ApiProcess, WorkerProcess, wait_until

APP = Path(darkroom.__file__).parent / "playground" / "app.py"
SECONDS = 60

Open = Callable[..., AppTest]


@pytest.fixture(scope="package", autouse=True)
def _packages_are_read_once() -> Iterator[None]:
    """For each page AppTest looks through all that is installed for components of Streamlit's."""
    with pytest.MonkeyPatch.context() as patched:
        scan = cache(manifest_scanner.scan_component_manifests)
        patched.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


@pytest.fixture
def client(
    api: ApiProcess, generate_worker: WorkerProcess, cpu_worker: WorkerProcess
) -> Iterator[darkroom.Client]:
    """What the page itself uses, to look behind it."""
    with darkroom.Client(api.url, api.key) as opened:
        yield opened


@pytest.fixture
def open_page(
    client: darkroom.Client, api: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens the page of a session in a browser of its own, on a tab."""
    monkeypatch.setenv("DARKROOM_URL", api.url)
    monkeypatch.setenv("DARKROOM_API_KEY", api.key)

    def opened(session: str | None = None, tab: str | None = None) -> AppTest:
        page = AppTest.from_file(str(APP), default_timeout=SECONDS)
        if session is not None:
            page.query_params["session"] = session
        if tab is not None:
            page.query_params["tab"] = tab
        page.run()
        assert not page.exception, page.exception
        return page

    _forget()
    yield opened
    _forget()


def _forget() -> None:
    # One process plays many playgrounds here; each has its own client and caches.
    st.cache_resource.clear()
    st.cache_data.clear()


def run_until(page: AppTest, what: str, condition: Callable[[], object]) -> None:
    """Draws the page again, as its clock does in a browser, until the condition holds."""

    def holds() -> object:
        page.run()
        assert not page.exception, page.exception
        return condition()

    wait_until(holds, SECONDS, what)


def button(page: AppTest, label: str) -> Button:
    """The first button with this label."""
    found = [one for one in page.button if one.label == label]
    assert found, f"no button {label!r} among {[one.label for one in page.button]}"
    return found[0]


def plain(text: str) -> str:
    """A text as it appears: without the backslashes before its punctuation."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def said(page: AppTest) -> str:
    """Everything that the page says in boxes, captions and text."""
    parts = [*page.error, *page.warning, *page.info, *page.success, *page.toast]
    return "\n".join(str(part.value) for part in [*parts, *page.caption, *page.markdown])

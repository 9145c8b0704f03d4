"""One whole stack as `make run` starts it, and a headless Chromium that opens its playground."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from deploy.local.ports import choose_port
from tests.e2e.browser.playground import Playground
from tests.processes import PROJECT, wait_until

ARTEFACTS = PROJECT / ".darkroom" / "artefacts" / "browser"
"""Where the screenshots are kept; git ignores it."""
START_SECONDS = 240.0
DESKTOP = (1280, 900)
PHONE = (390, 844)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
_PARTS = ("", "PLAYGROUND_", "POSTGRES_", "REDIS_", "S3_")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A running browser; the tests are skipped where there is none."""
    path = os.environ.get("DARKROOM_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), "")
    if not path:
        pytest.skip(
            "browser tests need Chromium: `apt-get install chromium` (Debian, Ubuntu: snap), or "
            "name a Chrome or Chromium in DARKROOM_CHROMIUM"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The playground's URL in a stack that was started with `make run`'s command."""
    folder = tmp_path_factory.mktemp("stack")
    # Not the settings of a developer's shell or of this run's other servers.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    ports = {f"DARKROOM_{part}PORT": str(choose_port()) for part in _PARTS}
    output = folder / "output"
    with output.open("wb") as file:
        stack = subprocess.Popen(
            [sys.executable, "-m", "deploy.local", "run"],
            cwd=PROJECT,
            env={**clean, "DARKROOM_HOME": str(folder / "home"), **ports},
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
        )
    try:

        def ready() -> bool:
            assert stack.poll() is None, output.read_text()
            return "Darkroom is ready" in output.read_text()

        wait_until(ready, START_SECONDS, "the stack")
        url = f"http://127.0.0.1:{ports['DARKROOM_PLAYGROUND_PORT']}"
        assert url in output.read_text()
        yield url
    finally:
        stack.terminate()
        try:
            stack.wait(30)
        except subprocess.TimeoutExpired:
            stack.kill()
            stack.wait()


class Browsers:
    """Opens the playground in new browsers, which know nothing of each other."""

    def __init__(self, chromium: Browser, address: str, test: str) -> None:
        self._chromium = chromium
        self._address = address
        self._test = test

    @contextmanager
    def open(
        self, path: str = "/", *, size: tuple[int, int] = DESKTOP, dark: bool = False
    ) -> Iterator[Playground]:
        """The playground in a fresh browser; a picture of how it ended is kept."""
        context = self._chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
        )
        playground = Playground(context.new_page(), self._address, ARTEFACTS / self._test)
        try:
            playground.open(path)
            yield playground
        finally:
            playground.keep("end")
            context.close()


Opened = AbstractContextManager[Playground]


@pytest.fixture
def browsers(chromium: Browser, address: str, request: pytest.FixtureRequest) -> Browsers:
    """Browsers for one test, whose pictures lie in a folder of its name."""
    name = request.node.name.removeprefix("test_")
    shutil.rmtree(ARTEFACTS / name, ignore_errors=True)
    (ARTEFACTS / name).mkdir(parents=True)
    return Browsers(chromium, address, name)


@pytest.fixture
def picture_file(tmp_path: Path) -> Path:
    """A picture that Darkroom did not make: a green field under a blue sky."""
    from PIL import Image

    picture = Image.new("RGB", (128, 128), (70, 150, 230))
    picture.paste((80, 180, 70), (0, 70, 128, 128))
    picture.save(tmp_path / "field.png")
    return tmp_path / "field.png"

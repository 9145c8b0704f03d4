"""A headless Chromium that opens the playground of a whole stack."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.browser.playground import Playground
from tests.processes import PROJECT
from tests.stack import Stack

ARTEFACTS = PROJECT / ".darkroom" / "artefacts" / "browser"
"""Where the screenshots are kept; git ignores it."""
DESKTOP = (1280, 900)
PHONE = (390, 844)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """A running browser.

    Raises:
        FileNotFoundError: there is none here.
    """
    path = os.environ.get("DARKROOM_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), "")
    if not path:
        raise FileNotFoundError(
            "browser tests need Chromium: `apt-get install chromium` (Debian, Ubuntu: snap), or "
            "name a Chrome or Chromium in DARKROOM_CHROMIUM"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A running browser; the tests are skipped where there is none."""
    with ExitStack() as opened:
        try:
            browser = opened.enter_context(start_chromium())
        except FileNotFoundError as missing:
            pytest.skip(str(missing))
        yield browser


@pytest.fixture(scope="module")
def address(chromium: Browser, stack: Stack) -> str:
    """The playground's URL in a stack that was started with `make run`'s command."""
    assert stack.playground in stack.said
    return stack.playground


class Browsers:
    """Opens the playground in new browsers, which know nothing of each other."""

    def __init__(self, chromium: Browser, address: str, test: str) -> None:
        self._chromium = chromium
        self._address = address
        self._test = test

    @contextmanager
    def open(
        self,
        path: str = "/",
        *,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        without_policy: bool = False,
    ) -> Iterator[Playground]:
        """The playground in a fresh browser; an image of how it ended is kept.

        Without its security policy it takes scripts of the test's.
        """
        context = self._chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            accept_downloads=True,
            bypass_csp=without_policy,
        )
        playground = Playground(context.new_page(), self._address, ARTEFACTS / self._test)
        try:
            playground.open(path)
            yield playground
        finally:
            playground.keep("end")
            context.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from npm; tests are skipped where it cannot be had."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core needs npm")
    packed = [npm, "pack", "axe-core@4", "--silent"]
    done = subprocess.run(
        packed, check=False, cwd=folder, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        pytest.skip(f"npm has no axe-core: {done.stderr[-200:]}")
    with tarfile.open(folder / done.stdout.strip()) as file:
        script = file.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


Opened = AbstractContextManager[Playground]


@pytest.fixture
def browsers(chromium: Browser, address: str, request: pytest.FixtureRequest) -> Browsers:
    """Browsers for one test, whose images lie in a folder of its name."""
    name = request.node.name.removeprefix("test_")
    shutil.rmtree(ARTEFACTS / name, ignore_errors=True)
    (ARTEFACTS / name).mkdir(parents=True)
    return Browsers(chromium, address, name)


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    """An image that Darkroom did not make: a green field under a blue sky."""
    from PIL import Image

    image = Image.new("RGB", (128, 128), (70, 150, 230))
    image.paste((80, 180, 70), (0, 70, 128, 128))
    image.save(tmp_path / "field.png")
    return tmp_path / "field.png"

"""The playground as someone before a screen uses it: fields, buttons, tabs, images."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Download, FilePayload, Locator, Page, Request, Response, expect
from playwright.sync_api import TimeoutError as TookTooLong

MILLISECONDS = 60_000
"""How long anything may take; a quiet machine needs a second or two."""
_PATIENCE = 10_000
"""How long a person waits before doing it again, in milliseconds."""


class Playground:
    """One page of the playground in one browser."""

    def __init__(self, page: Page, address: str, artefacts: Path) -> None:
        self.page = page
        self._address = address
        self._artefacts = artefacts
        self.hosts: set[str] = set()
        """Every host that the page asked anything of."""
        self.broken: list[str] = []
        """What the page asked for in vain."""
        page.set_default_timeout(MILLISECONDS)
        expect.set_options(timeout=MILLISECONDS)
        page.on("request", self._ask)
        page.on("response", self._note)

    def _ask(self, request: Request) -> None:
        if not request.url.startswith(("blob:", "data:")):  # of the page itself
            self.hosts.add(urlsplit(request.url).netloc)

    def _note(self, response: Response) -> None:
        if response.status >= 400:
            self.broken.append(f"{response.status} {response.url}")

    def open(self, path: str = "/") -> None:
        """Goes to a path and waits until the page is drawn."""
        self.page.goto(f"{self._address}{path}")
        expect(self.page.get_by_role("tab", name="Generate")).to_be_visible()

    @property
    def session(self) -> str:
        """The session in the address."""
        return parse_qs(urlsplit(self.page.url).query)["session"][0]

    def settle(self) -> None:
        """Waits until the page is drawn to its end, with the fields that load their code late."""
        self.page.locator("[data-test-script-state=notRunning]").wait_for(state="attached")
        expect(self.page.locator("[data-testid=stSkeleton]:visible")).to_have_count(0)

    def keep(self, name: str) -> None:
        """Keeps an image of the page, drawn to its end."""
        self.settle()
        self.page.screenshot(path=self._artefacts / f"{name}.png", full_page=True)

    def turn_to(self, tab: str) -> None:
        """Opens a tab."""
        chosen = self.page.get_by_role("tab", name=tab, selected=True)
        self._repeat(self.page.get_by_role("tab", name=tab).click, chosen)

    def field(self, key: str) -> Locator:
        """The field with a key."""
        return self.page.locator(f".st-key-{key}").locator("input, textarea").first

    def button(self, name: str) -> Locator:
        """Buttons of this name; a shortcut is a part of one's name."""
        whole = re.compile(rf"^{re.escape(name)}( Shortcut .*)?$")
        return self.page.get_by_role("button", name=whole)

    def press(self, key: str, on: Locator, *, until: Locator) -> None:
        """Presses a key until something is seen."""
        self._repeat(lambda: on.press(key), until)

    def enter(self, key: str, text: str, *, until: Locator) -> None:
        """Fills a field and presses Enter until something is seen."""

        def fill() -> None:
            self.field(key).fill("")  # the same text again would ask for nothing
            self.field(key).fill(text)
            self.field(key).press("Enter")

        self._repeat(fill, until)

    def pick(self, field: Locator, option: str, *, until: Locator) -> None:
        """Chooses an option of a list of several, by its name, until something is seen."""

        def write_and_click() -> None:
            field.fill("")  # the same text again would open no list
            field.fill(option)
            self._click_option(option)
            self.page.keyboard.press("Escape")  # what is below an open list is out of reach

        self._repeat(write_and_click, until)

    def pick_one(self, field: Locator, option: str, *, until: Locator) -> None:
        """Chooses the option of a list of one choice until something is seen."""

        def click() -> None:
            field.click(timeout=_PATIENCE)
            self._click_option(option)

        self._repeat(click, until)

    def _click_option(self, name: str) -> None:
        self.page.get_by_role("option", name=name, exact=True).click(timeout=_PATIENCE)

    def switch_on(self, name: str, *, until: Locator) -> None:
        """Turns a switch of the filters on until something is seen."""
        switch = self.page.get_by_role("switch", name=name)

        def open_and_click() -> None:
            if not switch.is_visible():
                self.page.get_by_text("Filters", exact=True).click()
                switch.wait_for(timeout=_PATIENCE)
            if not switch.is_checked():
                self.page.get_by_text(name).click()

        self._repeat(open_and_click, until)

    def _repeat(self, act: Callable[[], object], until: Locator) -> None:
        """As a person does: a list closes when the page moves below it, and Streamlit can lose
        what is done while it exchanges an element."""
        for _ in range(MILLISECONDS // _PATIENCE):
            self.settle()
            with suppress(TookTooLong):
                act()
            with suppress(TookTooLong):
                until.first.wait_for(timeout=_PATIENCE)
                return
        expect(until.first).to_be_visible()

    def upload(self, key: str, file: Path | FilePayload, *, until: Locator) -> None:
        """Gives a file to an uploader until something is seen."""
        uploader = self.page.locator(f"[class*=st-key-{key}] input[type=file]")
        self._repeat(lambda: uploader.set_input_files(file, timeout=_PATIENCE), until)

    def drag(self, where: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draws with the mouse from one point to another, each as a share of width and height."""
        self.settle()  # what is drawn late above it would move it
        box = where.bounding_box()
        assert box is not None
        points = [
            (box["x"] + box["width"] * across, box["y"] + box["height"] * down)
            for across, down in (start, end)
        ]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=8)
        self.page.mouse.up()

    def settings(self, **values: int | str) -> None:
        """Fills number fields of the settings, which are folded in."""
        self.page.get_by_text("Model, size and steps").click()
        for key, value in values.items():
            self.field(f"form-{key}").fill(str(value))
            self.page.keyboard.press("Tab")

    def cards(self) -> Locator:
        """The finished images with their buttons, newest first."""
        return self.page.locator("[class*=st-key-card-]")

    def generate(self, prompt: str, *, cards: int) -> None:
        """Asks for images, and waits until so many are there."""
        self.field("form-prompt").fill(prompt)
        self.button("Generate").click()
        expect(self.cards()).to_have_count(cards)
        self.settle()

    def download(self, button: Locator) -> Download:
        """What a button downloads; one of an earlier drawing has no file any more."""
        for _ in range(MILLISECONDS // _PATIENCE):
            self.settle()
            with suppress(TookTooLong):
                with self.page.expect_download(timeout=_PATIENCE) as download:
                    button.click()
                return download.value
        raise AssertionError("Nothing was downloaded.")

    def file_of(self, card: Locator) -> bytes:
        """The file that a card's button downloads."""
        return self.download(card.get_by_role("button", name="Download")).path().read_bytes()

    def bytes_of(self, card: Locator) -> bytes:
        """The file of the image that a card shows, as this browser gets it."""
        source = card.locator("img").first.get_attribute("src")
        assert source is not None
        return self.page.request.get(f"{self._address}{urlsplit(source).path}").body()

    def choose(self, card: Locator, action: str) -> None:
        """Chooses an action in a card's menu."""
        card.get_by_role("button", name="More").click()
        self.page.get_by_role("menuitem", name=action).or_(
            self.page.get_by_role("option", name=action)
        ).first.click()

"""The playground as someone before a screen uses it: fields, buttons, tabs, pictures."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Locator, Page, Response, expect

MILLISECONDS = 60_000
"""How long anything may take; a quiet machine needs a second or two."""


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
        page.on("request", lambda asked: self.hosts.add(urlsplit(asked.url).netloc))
        page.on("response", self._note)

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

    def keep(self, name: str) -> None:
        """Keeps a picture of the page, drawn to its end."""
        self.page.locator("[data-test-script-state=notRunning]").wait_for(state="attached")
        self.page.screenshot(path=self._artefacts / f"{name}.png", full_page=True)

    def turn_to(self, tab: str) -> None:
        """Opens a tab."""
        self.page.get_by_role("tab", name=tab).click()
        expect(self.page.get_by_role("tab", name=tab, selected=True)).to_be_visible()

    def field(self, key: str) -> Locator:
        """The field with a key."""
        return self.page.locator(f".st-key-{key}").locator("input, textarea").first

    def button(self, name: str) -> Locator:
        """Buttons of this name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def upload(self, key: str, file: Path) -> None:
        """Gives a file to an uploader."""
        self.page.locator(f"[class*=st-key-{key}] input[type=file]").set_input_files(file)

    def settings(self, **values: int | str) -> None:
        """Fills number fields of the settings, which are folded in."""
        self.page.get_by_text("Model, size, steps, guidance").click()
        for key, value in values.items():
            self.field(f"form-{key}").fill(str(value))
            self.page.keyboard.press("Tab")

    def cards(self) -> Locator:
        """The finished pictures with their buttons, newest first."""
        return self.page.locator("[class*=st-key-card-]")

    def generate(self, prompt: str, *, cards: int) -> None:
        """Asks for pictures, and waits until so many are there."""
        self.field("form-prompt").fill(prompt)
        self.button("Generate").click()
        expect(self.cards()).to_have_count(cards)

    def bytes_of(self, card: Locator) -> bytes:
        """The file of the picture that a card shows, as this browser gets it."""
        source = card.locator("img").first.get_attribute("src")
        assert source is not None
        return self.page.request.get(f"{self._address}{urlsplit(source).path}").body()

    def choose(self, card: Locator, action: str) -> None:
        """Chooses an action in the menu of a small card."""
        card.get_by_role("button", name="More").click()
        self.page.get_by_role("menuitem", name=action).or_(
            self.page.get_by_role("option", name=action)
        ).first.click()

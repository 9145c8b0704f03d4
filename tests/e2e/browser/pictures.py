"""`make pictures`: the playground's pictures in the docs, made anew from a stack of their own."""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Error as Lost
from playwright.sync_api import FilePayload, expect

from darkroom import Client
from tests.e2e.browser.conftest import ARTEFACTS, PHONE, Browsers, start_chromium
from tests.e2e.browser.playground import Playground
from tests.processes import PROJECT
from tests.stack import Stack, free_ports

Size = tuple[int, int]
Show = Callable[[Playground], None]
SIZE = (1440, 900)
TRIES = 5
GAP = 24
"""Pixels between the two phones."""
FEW_COLOURS = 4096
"""A page without images has fewer; gradients need them all."""
SESSION = "landscapes"
MAIN = "green mountains at noon, the sun, a lake"
ENLARGED = "desert hills at dawn, pine trees"
COMPARED = ("green mountains at sunset, a lake", "green mountains at night, a lake")
JOBS = (
    *((f"{land} hills at dawn, pine trees", 5) for land in ("rocky", "green", "snowy")),
    *((f"{land} mountains at dawn, a lake", 5) for land in ("snowy", "green", "purple")),
    *((f"{land} mountains at night, the moon, a lake", 6) for land in ("snowy", "purple")),
    *((f"{land} mountains at sunset, a lake", 7) for land in ("desert", "rocky")),
    (MAIN, 22),
    *((prompt, 9) for prompt in COMPARED),
    ("rocky mountains in a storm, a river", 4),
    ("purple hills at sunset, the sun", 3),
    ("green hills at noon, yellow flowers, a red house", 2),
    ("snowy mountains at night, the moon, stars", 8),
    (ENLARGED, 1),
)
"""Prompts and seeds, oldest first."""
_ROWS = """sku,colour,thing,place,note
M-1,green,mountains,a lake,
M-2,purple,hills,pine trees,new
M-3,desert,hills,a river,
M-4,snowy,mountains,a red house,
"""
TABLE: FilePayload = {"name": "products.csv", "mimeType": "text/csv", "buffer": _ROWS.encode()}
TEMPLATE = "{colour} {thing} at noon, {place}"
_HILLS = product(("green", "snowy", "desert", "purple"), ("noon", "night", "dawn", "sunset"))
LINES: list[dict[str, Any]] = [
    # The first are soon done, and the rest leave time to look at them.
    {"custom_id": f"hill-{seed}", "prompt": f"{land} hills at {time}", "seed": seed}
    | {"steps": 20 if seed < 4 else 100}
    for seed, (land, time) in enumerate(_HILLS)
]


def show_first(page: Playground) -> None:
    """What the tab begins with; the form is filled from the newest job."""
    expect(page.cards().first.locator("img")).to_be_visible()
    if page.page.get_by_role("tab", name="Generate", selected=True).count():
        expect(page.field("form-prompt")).to_have_value(MAIN)


def show_large(page: Playground) -> None:
    """An image large, with its settings."""
    page.page.get_by_role("button", name=f"Open {ENLARGED}").click()
    expect(page.page.get_by_role("dialog").get_by_text("Make it elsewhere")).to_be_visible()


def show_mask(page: Playground) -> None:
    """A part of an image that is marked to become a house."""
    page.choose(page.cards().first, "Use as initial image")
    board = page.page.get_by_role("application")
    expect(board).to_be_visible()
    page.field("form-prompt").fill(f"{MAIN}, a red house")
    page.page.keyboard.press("Tab")
    page.settle()
    scroll = "it => { it.style.scrollMarginTop = '1rem'; it.scrollIntoView() }"
    page.button("Generate").evaluate(scroll)
    for down in (0.58, 0.64):
        page.drag(board, (0.62, down), (0.82, down))
    expect(page.button("Mask")).to_be_visible()


def show_found(page: Playground) -> None:
    """Images by words."""
    match = page.cards().first.get_by_text("% match")
    page.enter("search-query", "mountains by a lake in the evening", until=match)


def show_compared(page: Playground) -> None:
    """Two images of one seed under a slider."""
    page.page.get_by_text("Select several").click()
    for count, prompt in enumerate(COMPARED, 1):
        card = page.cards().filter(has=page.page.get_by_alt_text(prompt, exact=True))
        card.locator("label").click()
        expect(page.page.get_by_text(f"{count} selected")).to_be_visible()
    page.button("Compare").click()
    dialog = page.page.get_by_role("dialog")
    expect(dialog.locator("img")).to_have_count(2)
    dialog.get_by_text("Slider", exact=True).click()
    expect(dialog.get_by_role("slider")).to_be_visible()


def show_columns(page: Playground) -> None:
    """A table whose columns become prompts."""
    page.upload("batch-file", TABLE, until=page.field("batch-template"))
    page.enter("batch-template", TEMPLATE, until=page.button("Start 4 jobs"))
    sku = page.page.get_by_role("combobox", name="sku")
    page.pick(sku, "custom_id", until=page.page.get_by_role("cell", name="M-4"))


def show_running(page: Playground) -> None:
    """A running batch with its first images."""
    expect(page.page.get_by_text("done in about")).to_be_visible()
    expect(page.cards().nth(3).locator("img")).to_be_visible()


LIGHT, DARK, BOTH = ((False, ""),), ((True, ""),), ((False, ""), (True, "-dark"))
PICTURES = (
    ("generate", "Generate", LIGHT, show_first),
    ("image", "History", DARK, show_large),
    ("mask", "Generate", DARK, show_mask),
    ("search", "Search", BOTH, show_found),
    ("compare", "History", BOTH, show_compared),
    ("columns", "Batches", BOTH, show_columns),
    ("batches", "Batches", BOTH, show_running),
)
"""Name, tab, colours with what they add to the name, and how the tab gets there."""


def take(browsers: Browsers, tab: str, show: Show, *, dark: bool, size: Size = SIZE) -> Image.Image:
    """What is in sight of a tab, drawn to its end; again where Streamlit lost what was done."""
    path = f"/?session={SESSION}&tab={tab}"
    for _ in range(TRIES):
        with suppress(AssertionError, Lost), browsers.open(path, size=size, dark=dark) as page:
            page.settle()
            show(page)
            expect(page.page.get_by_test_id("stToast")).to_have_count(0)
            page.page.mouse.move(2, 2)  # nothing is pointed at
            page.settle()
            faded = page.page.locator("[data-stale=true]")  # what is about to be drawn anew
            expect(faded).to_have_count(0)
            page.page.evaluate("Promise.all([...document.images].map(image => image.decode()))")
            shot = page.page.screenshot(animations="disabled")
            if faded.count() == 0:
                return Image.open(io.BytesIO(shot)).convert("RGB")
    raise SystemExit(f"{tab} was not drawn; {ARTEFACTS}/pictures has how far it came")


def take_all(stack: Stack) -> Iterator[tuple[str, Image.Image]]:
    """Every picture with its name, from a stack with nothing in it."""
    known = stack.settings()
    url, key = known["DARKROOM_URL"], known["DARKROOM_API_KEY"]
    with start_chromium() as chromium, Client(url, key) as client:
        browsers = Browsers(chromium, stack.playground, "pictures")
        for prompt, seed in JOBS:
            client.generate(prompt, seed=seed, session_id=SESSION)
        client.generate(MAIN, seed=39, num_images=2, session_id=SESSION)
        phones = Image.new("RGB", (2 * PHONE[0] + GAP, PHONE[1]), "white")
        for place, tab in enumerate(("Generate", "History")):
            shot = take(browsers, tab, show_first, dark=bool(place), size=PHONE)
            phones.paste(shot, (place * (PHONE[0] + GAP), 0))
        yield "phone", phones
        for name, tab, colours, show in PICTURES:
            if show is show_running:
                client.batches.submit(LINES, name="hills.jsonl", session_id=SESSION)
            for dark, suffix in colours:
                yield f"{name}{suffix}", take(browsers, tab, show, dark=dark)


def main() -> None:
    """Starts a stack, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "images")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="darkroom-pictures-") as folder:
        stack = Stack(Path(folder) / "home", Path(folder) / "output", "up", **free_ports())
        try:
            stack.wait_for("Ctrl-C")  # its last word
            for name, image in take_all(stack):
                file = out / f"playground-{name}.png"
                few = image.getcolors(FEW_COLOURS) is not None
                (image.quantize() if few else image).save(file, optimize=True)
                print(file, f"{file.stat().st_size // 1000} kB", flush=True)  # noqa: T201 - a command
        finally:
            stack.end()


if __name__ == "__main__":
    main()

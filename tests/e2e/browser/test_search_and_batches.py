"""The Search, History and Batches tabs, in a real browser against a whole running stack."""

import json
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.browser.conftest import PHONE, Browsers
from tests.e2e.browser.playground import Playground

pytestmark = [pytest.mark.browser, pytest.mark.timeout(360)]

QUICK = 6
"""Steps: enough to see something, and done in a moment."""
TABLE = "sku,colour,thing\nH-1,green,hills\nH-2,purple,hills\n"
LINES = [
    {"custom_id": "hill", "prompt": "{green|purple} hills at noon", "steps": QUICK, "seed": 3},
    {"custom_id": "bad", "prompt": "a lake", "widht": 512},
]


def check(page: Playground, axe: str, name: str) -> None:
    """Keeps an image, and fails for what axe finds serious, or for a page that is too wide."""
    page.keep(name)
    # Streamlit gives its toasts no name; they go by themselves.
    expect(page.page.get_by_test_id("stToast")).to_have_count(0, timeout=20_000)
    page.page.evaluate(axe)
    found = page.page.evaluate("axe.run()")["violations"]
    serious = [one for one in found if one["impact"] in {"serious", "critical"}]
    assert not serious, json.dumps(serious, indent=1)[:4000]
    size = page.page.viewport_size
    assert size is not None
    assert page.page.evaluate("document.documentElement.scrollWidth") <= size["width"]


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_search_by_words_by_an_image_and_by_filters_alone(
    browsers: Browsers, axe: str, tmp_path: Path, dark: bool
) -> None:
    prompt = f"a snowy forest at {'night' if dark else 'noon'}, a frozen lake"
    with browsers.open(dark=dark, without_policy=True) as page:
        page.settings(steps=QUICK)
        page.field("form-count").fill("3")
        page.generate(prompt, cards=3)
        file = tmp_path / "forest.png"
        file.write_bytes(page.file_of(page.cards().first))
        page.generate("a green field, yellow flowers", cards=6)

        page.turn_to("Search")
        expect(page.page.get_by_text("Newest first.")).to_be_visible()
        page.keep("newest")
        # Without words; three images of one prompt are folded.
        own = page.cards().filter(has_text=prompt)
        expect(own).to_have_count(1)
        expect(page.page.get_by_role("radio", name="Similarity")).to_be_disabled()
        own.get_by_role("button", name="2 like this").click()
        expect(own).to_have_count(3)
        check(page, axe, "unfolded")

        first = own.first
        match = first.get_by_text("% match")
        page.enter("search-query", "a frozen lake in a forest", until=match)
        expect(page.cards().first.get_by_text("a snowy forest").last).to_be_visible()
        page.page.get_by_text("Similarity", exact=True).click()
        expect(page.page.get_by_role("radio", name="Similarity")).to_be_checked()
        expect(first.get_by_text(prompt, exact=True)).to_be_visible()
        check(page, axe, "similarity")

        page.upload("search-file", file, until=page.page.get_by_text("Similar to forest.png"))
        expect(first.get_by_text(prompt, exact=True)).to_be_visible()
        check(page, axe, "by-image")
        page.button("Remove").click()
        expect(page.page.get_by_text("Similar to forest.png")).to_have_count(0)
        first.get_by_role("button", name="Star").click()
        expect(first.get_by_role("button", name="Remove star")).to_be_visible()
        page.enter("search-query", "", until=page.page.get_by_text("Newest first."))
        page.switch_on("Starred only", until=page.page.get_by_text("Filters: 1 active"))
        expect(own).to_have_count(1)
        expect(own.get_by_text("like this")).to_have_count(0)
        own.get_by_role("button", name="Open").click()
        expect(page.page.get_by_role("dialog").locator("img").first).to_be_visible()
        assert not page.broken


@pytest.mark.long
def test_search_finds_an_image_and_history_keeps_it_over_a_reload(browsers: Browsers) -> None:
    prompt = "a purple beach at noon, palm trees, a red house"
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.generate(prompt, cards=1)
        seed = page.field("form-seed").input_value()
        session = page.session

        page.turn_to("Search")
        first = page.cards().first
        match = first.get_by_text(re.compile(rf"seed {seed} · \d+% match"))
        page.enter("search-query", "red house on a purple beach", until=match)
        expect(first.get_by_text(prompt, exact=True)).to_be_visible()
        page.keep("found")

    with browsers.open(f"/?session={session}&tab=History") as page:
        expect(page.cards()).to_have_count(1)
        page.page.reload()
        expect(page.cards().first.get_by_text(prompt, exact=True)).to_be_visible()
        page.choose(page.cards().first, "Reuse prompt and seed")
        expect(page.field("form-prompt")).to_have_value(prompt)
        expect(page.field("form-seed")).to_have_value(seed)
        page.turn_to("History")
        page.choose(page.cards().first, "Delete")
        expect(page.page.get_by_text("no images yet")).to_be_visible()
        page.button("Undo").click()
        expect(page.cards()).to_have_count(1)


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_batch_goes_from_its_file_to_its_zip(
    browsers: Browsers, axe: str, tmp_path: Path, dark: bool
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    with browsers.open("/?tab=Batches", dark=dark, without_policy=True) as page:
        report = page.page.locator(".st-key-batch-new")
        page.upload("batch-file", file, until=report.get_by_text("cannot be started"))
        expect(report.get_by_text("Did you mean width?")).to_be_visible()
        for fact in ("Device time", "Done in", "Cost"):
            expect(report.get_by_text(fact, exact=True)).to_be_visible()
        expect(report.get_by_role("cell", name="purple hills at noon")).to_be_visible()
        check(page, axe, "report")
        report.get_by_text("Skip invalid rows").click()
        page.button("Start 2 jobs").click()
        expect(report).to_have_count(0)
        batch = page.page.locator("[class*=st-key-batch-batch_]").first
        expect(batch.get_by_text("prompts.jsonl")).to_be_visible()
        expect(batch.get_by_text("partial", exact=True)).to_be_visible()
        expect(batch.get_by_text("2 of 2 images")).to_be_visible()
        expect(batch.get_by_text("Correct it in the file")).to_be_visible()
        check(page, axe, "done")
        download = page.download(batch.get_by_role("button", name="Download all as ZIP"))
        names = zipfile.ZipFile(download.path()).namelist()
        assert names == ["hill-1_3.png", "hill-2_3.png"]
        batch.get_by_role("button", name="Open green hills").click()
        dialog = page.page.get_by_role("dialog")
        expect(dialog.get_by_text("1 of 2")).to_be_visible()
        page.press("ArrowRight", dialog, until=dialog.get_by_text("2 of 2"))
        check(page, axe, "large")
        assert not page.broken


@pytest.mark.long
def test_a_table_becomes_prompts_on_a_phone(browsers: Browsers, axe: str, tmp_path: Path) -> None:
    file = tmp_path / "products.csv"
    file.write_text(TABLE)
    with browsers.open("/?tab=Batches", size=PHONE, without_policy=True) as page:
        asked = page.page.get_by_text("What are the columns of this table?")
        page.upload("batch-file", file, until=asked)
        check(page, axe, "columns")
        for column in ("colour", "thing"):
            page.button(column).click()
            expect(page.field("batch-template")).to_have_value(re.compile(f"{{{column}}}$"))
        sku = page.page.get_by_role("combobox", name="sku")
        page.pick(sku, "custom_id", until=page.page.get_by_role("cell", name="H-2"))
        expect(page.page.get_by_role("cell", name="purple hills")).to_be_visible()
        check(page, axe, "mapped")
        page.button("Start 2 jobs").click()
        expect(page.page.locator(".st-key-batch-new")).to_have_count(0)
        batch = page.page.locator("[class*=st-key-batch-batch_]").first
        expect(batch.get_by_text("products.csv")).to_be_visible()
        expect(batch.get_by_text("succeeded", exact=True)).to_be_visible()
        expect(batch.locator("[class*=st-key-card-] img")).to_have_count(2)
        expect(batch.get_by_text("H-2")).to_be_visible()
        check(page, axe, "made")

"""What people do in the playground, in a real browser, against a whole running stack."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.browser.conftest import PHONE, Browsers

pytestmark = [pytest.mark.browser, pytest.mark.timeout(360)]

QUICK = 6
"""Steps: enough to see something, and done in a moment."""


def test_a_seed_gives_the_same_picture_twice(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.page.get_by_text("Keep", exact=True).click()
        expect(page.field("form-seed")).to_be_enabled()
        page.field("form-seed").fill("7")
        page.generate("green mountains at noon, the sun, a lake", cards=1)
        page.button("Same seed again").click()
        expect(page.cards()).to_have_count(2)
        first, second = (page.bytes_of(page.cards().nth(place)) for place in (0, 1))
        assert first.startswith(b"\x89PNG")
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
        expect(page.page.get_by_text("seed 7")).to_have_count(2)
        page.button("Reproduce").first.click()
        expect(page.page.get_by_text("Identical.")).to_be_visible()
        page.keep("reproduced")
        assert not page.broken


def test_the_page_answers_while_a_job_runs_and_a_reload_finds_it(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(steps=100)
        page.field("form-count").fill("8")
        page.field("form-prompt").fill("snowy mountains at night, the moon")
        page.button("Generate").click()
        expect(page.page.get_by_alt_text("preview").first).to_be_visible()
        page.keep("running")
        # What one types meanwhile stays, although the progress is drawn anew all the time.
        page.field("form-negative").press_sequentially("flowers and houses", delay=60)
        expect(page.field("form-negative")).to_have_value("flowers and houses")
        address = page.page.url
        page.page.goto("about:blank")
        page.page.goto(address)
        expect(page.page.get_by_role("progressbar").first).to_be_visible()
        expect(page.field("form-prompt")).to_have_value("snowy mountains at night, the moon")
        page.button("Cancel").click()
        expect(page.page.get_by_text("Canceled.")).to_be_visible()


def test_an_upload_is_varied(browsers: Browsers, picture_file: Path) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.page.get_by_text("Initial image", exact=True).click()
        page.upload("initial-file", picture_file)
        expect(page.page.get_by_text("Initial image: field.png")).to_be_visible()
        page.generate("green hills at sunset, a house", cards=1)
        page.button("Show receipt").click()
        dialog = page.page.get_by_role("dialog")
        expect(dialog.get_by_text("Strength", exact=True)).to_be_visible()
        expect(dialog.get_by_role("cell", name="0.6", exact=True)).to_be_visible()
        page.keep("receipt")


def test_search_finds_a_picture_and_history_keeps_it_over_a_reload(browsers: Browsers) -> None:
    prompt = "a purple beach at noon, palm trees, a red house"
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.generate(prompt, cards=1)
        seed = page.field("form-seed").input_value()
        session = page.session

        page.turn_to("Search")
        page.field("search-query").fill("red house on a purple beach")
        page.page.keyboard.press("Enter")
        expect(page.cards().first.get_by_text(prompt)).to_be_visible()
        expect(page.cards().first.get_by_text(f"seed {seed} · score")).to_be_visible()
        page.keep("found")

    with browsers.open(f"/?session={session}&tab=History") as page:
        expect(page.cards()).to_have_count(1)
        page.page.reload()
        expect(page.cards().first.get_by_text(prompt)).to_be_visible()
        page.choose(page.cards().first, "Take over prompt and seed")
        expect(page.field("form-prompt")).to_have_value(prompt)
        expect(page.field("form-seed")).to_have_value(seed)
        page.turn_to("History")
        page.choose(page.cards().first, "Delete")
        page.button("Delete for good").click()
        expect(page.page.get_by_text("no pictures yet")).to_be_visible()


def test_a_downloaded_picture_fills_the_form_from_its_receipt(
    browsers: Browsers, tmp_path: Path
) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.generate("a red desert at dawn", cards=1)
        seed = page.field("form-seed").input_value()
        with page.page.expect_download() as download:
            page.button("Download").click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
    with browsers.open() as page:
        page.upload("receipt-file", file)
        expect(page.field("form-prompt")).to_have_value("a red desert at dawn")
        expect(page.field("form-seed")).to_have_value(seed)


def test_a_batch_goes_from_its_file_to_its_zip(browsers: Browsers, tmp_path: Path) -> None:
    lines = [
        {"custom_id": "hill", "prompt": "{green|purple} hills at noon", "steps": QUICK, "seed": 3},
        {"custom_id": "bad", "prompt": "a lake", "steps": 0},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with browsers.open("/?tab=Batches") as page:
        page.upload("batch-file", file)
        expect(page.page.get_by_text("nothing can start as it is")).to_be_visible()
        page.keep("report")
        page.page.get_by_text("Leave out lines that break a rule").click()
        page.button("Start 2 jobs").click()
        zip_button = page.button("Download ZIP")
        expect(zip_button).to_be_visible()
        expect(page.page.get_by_alt_text("contact sheet")).to_be_visible()
        with page.page.expect_download() as download:
            zip_button.click()
        names = zipfile.ZipFile(download.value.path()).namelist()
        assert names == ["hill-1_3.png", "hill-2_3.png"]


def test_an_error_is_told_in_plain_words(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(width=130)
        page.field("form-prompt").fill("a lake")
        page.button("Generate").click()
        expect(page.page.get_by_text("These settings cannot be used.")).to_be_visible()
        expect(page.page.get_by_text("A multiple of 8, not 130.").first).to_be_visible()
        expect(page.field("form-prompt")).to_have_value("a lake")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_clipped_on_a_phone_and_nothing_comes_from_outside(
    browsers: Browsers, address: str, dark: bool
) -> None:
    with browsers.open(size=PHONE, dark=dark) as page:
        page.settings(steps=QUICK)
        page.generate("a green field in spring, white flowers", cards=1)
        for tab in ("Generate", "Search", "History", "Batches"):
            page.turn_to(tab)
            if tab == "Search":
                page.field("search-query").fill("flowers")
                page.page.keyboard.press("Enter")
            shown = page.button("Upload") if tab == "Batches" else page.cards().locator("img")
            expect(shown.first).to_be_visible()
            wide = page.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= PHONE[0], tab
            page.keep(tab)
        assert page.hosts == {address.removeprefix("http://")}

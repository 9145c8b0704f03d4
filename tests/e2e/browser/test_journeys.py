"""What people do in the playground, in a real browser, against a whole running stack."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import expect

from tests.e2e.browser.conftest import PHONE, Browsers
from tests.processes import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(360)]

QUICK = 6
"""Steps: enough to see something, and done in a moment."""


def test_a_seed_gives_the_same_image_twice(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.page.get_by_text("Fixed", exact=True).click()
        expect(page.field("form-seed")).to_be_enabled()
        page.field("form-seed").fill("7")
        page.generate("green mountains at noon, the sun, a lake", cards=1)
        page.button("Same seed again").click()
        expect(page.cards()).to_have_count(2)
        first, second = (page.file_of(page.cards().nth(place)) for place in (0, 1))
        assert first.startswith(b"\x89PNG")
        assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
        expect(page.page.get_by_role("button", name="seed 7")).to_have_count(2)
        page.choose(page.cards().first, "Reproduce")
        expect(page.page.get_by_text("Identical.")).to_be_visible()
        page.keep("reproduced")
        assert not page.broken


@pytest.mark.long
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


@pytest.mark.long
def test_an_upload_is_varied(browsers: Browsers, image_file: Path) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.page.get_by_text("Initial image and mask", exact=True).click()
        page.upload("initial-file", image_file, until=page.button("Initial image: field.png"))
        page.generate("green hills at sunset, a house", cards=1)
        page.choose(page.cards().first, "Show receipt")
        dialog = page.page.get_by_role("dialog")
        expect(dialog.get_by_text("Strength", exact=True)).to_be_visible()
        expect(dialog.get_by_role("cell", name="0.6", exact=True)).to_be_visible()
        page.keep("receipt")


@pytest.mark.long
def test_a_mask_is_painted_and_only_its_part_is_made_anew(
    browsers: Browsers, image_file: Path
) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.page.get_by_text("Initial image and mask", exact=True).click()
        board = page.page.get_by_role("application")
        page.upload("initial-file", image_file, until=board)
        board.scroll_into_view_if_needed()
        page.drag(board, (0.3, 0.3), (0.6, 0.3))
        expect(page.button("Mask")).to_be_visible()
        page.button("Undo").click()
        expect(page.button("Mask")).to_have_count(0)
        board.focus()
        for key in ("ArrowUp", " ", "ArrowRight", " "):
            page.page.keyboard.press(key)
        expect(page.button("Mask")).to_be_visible()
        page.keep("painted")
        page.generate("a red house", cards=1)
        made = Image.open(io.BytesIO(page.bytes_of(page.cards().first))).convert("RGB")
        before = Image.open(image_file).resize(made.size)
        changed = ImageChops.difference(made, before).getbbox()
        assert changed is not None
        assert changed[0] > made.width * 0.2
        assert changed[3] < made.height * 0.8
        # A mask that is removed where it is shown is gone from the board, too.
        page.button("Mask").click()
        expect(page.button("Mask")).to_have_count(0)
        assert not page.broken


@pytest.mark.long
def test_a_draft_survives_a_reload(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.field("form-prompt").fill("a lake that was never sent")
        page.settings(guidance=7)
        page.page.get_by_text("16:9", exact=True).click()
        page.field("form-steps").fill("9")
        page.page.keyboard.press("Tab")
        expect(page.field("form-prompt")).to_have_value("a lake that was never sent")
        page.field("form-negative").press_sequentially("typed, and not left")
        # The page waits for a pause in the typing.
        kept = "Object.values(sessionStorage).join().includes('typed, and not left')"
        wait_until(lambda: page.page.evaluate(kept), 60, "the draft")
        page.page.reload()
        expect(page.field("form-prompt")).to_have_value("a lake that was never sent")
        expect(page.field("form-negative")).to_have_value("typed, and not left")
        page.page.get_by_text("Model, size and steps").click()
        expect(page.field("form-steps")).to_have_value("9")
        expect(page.field("form-guidance")).to_have_value("7.00")
        width, height = page.field("form-width"), page.field("form-height")
        assert width.input_value() != height.input_value()
        # It is restored once: what is typed then stays when the page is drawn again.
        page.field("form-prompt").fill("another lake")
        page.page.get_by_text("1:1", exact=True).click()
        expect(width).to_have_value("128")
        expect(page.field("form-prompt")).to_have_value("another lake")


@pytest.mark.long
def test_the_gallery_by_keys_and_several_at_once(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.field("form-count").fill("3")
        page.field("form-prompt").fill("green hills at noon")
        page.field("form-prompt").press("Control+Enter")
        expect(page.cards()).to_have_count(3)
        page.turn_to("History")
        page.page.get_by_role("button", name="Open green hills").first.click()
        dialog = page.page.get_by_role("dialog")
        expect(dialog.get_by_text("1 of 3")).to_be_visible()
        page.press("ArrowRight", dialog, until=dialog.get_by_text("2 of 3"))
        page.keep("large")
        page.page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        page.page.get_by_text("Select several").click()
        for place in (0, 1):
            page.settle()
            page.cards().nth(place).locator("label").click()
            expect(page.page.get_by_text(f"{place + 1} selected")).to_be_visible()
        download = page.download(page.button("Download ZIP"))
        assert len(zipfile.ZipFile(download.path()).namelist()) == 2
        page.button("Compare").click()
        expect(dialog.locator("img")).to_have_count(2)
        page.keep("compared")
        dialog.get_by_text("Slider", exact=True).click()
        slider = dialog.get_by_role("slider", name="How much of the left image is seen")
        slider.press("Home")
        expect(slider).to_have_value("0")
        page.drag(dialog.locator(".both"), (0.2, 0.5), (0.75, 0.5))
        expect(slider).to_have_value("75")
        page.keep("slider")
        page.page.keyboard.press("Escape")
        page.button("Delete").click()
        expect(page.cards()).to_have_count(1)
        page.button("Undo").click()
        expect(page.cards()).to_have_count(3)


@pytest.mark.long
def test_a_grid_over_two_settings(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.field("form-prompt").fill("a purple beach at noon")
        page.page.get_by_text("Grid over two settings").click()
        for axis, setting, values in (("x", "Steps", "2, 4, 6"), ("y", "Guidance", "1, 4")):
            field = page.field(f"form-grid-{axis}-values")
            enabled = field.and_(page.page.locator(":enabled"))
            page.pick_one(page.field(f"form-grid-{axis}"), setting, until=enabled)
            field.fill(values)
            page.page.keyboard.press("Tab")
        page.button("Make 6 images").click()
        expect(page.page.get_by_text("6 of 6 images")).to_be_visible()
        expect(page.page.locator(".st-key-grid img")).to_have_count(6)
        page.keep("grid")


@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_keeps_anyone_out(browsers: Browsers, axe: str, dark: bool) -> None:
    """Deque's axe finds nothing serious: names, contrasts, roles; on a phone, targets are large."""
    with browsers.open(size=PHONE, dark=dark, without_policy=True) as page:
        page.settings(steps=QUICK)
        page.generate("a green field in spring", cards=1)
        for tab in ("Generate", "Search", "History", "Batches"):
            page.turn_to(tab)
            if tab == "History":
                page.page.get_by_role("button", name="Open a green field").click()
                expect(page.page.get_by_role("dialog").locator("img").first).to_be_visible()
            page.keep(tab)
            page.page.evaluate(axe)
            found = page.page.evaluate("axe.run()")["violations"]
            serious = [one for one in found if one["impact"] in {"serious", "critical"}]
            assert not serious, json.dumps(serious, indent=1)[:4000]
            if tab == "Generate":
                bar = page.cards().first.get_by_role("button", name="Star").bounding_box()
                assert bar is not None
                assert min(bar["width"], bar["height"]) >= 32
            page.page.keyboard.press("Escape")


@pytest.mark.long
def test_a_downloaded_image_fills_the_form_from_its_receipt(
    browsers: Browsers, tmp_path: Path
) -> None:
    with browsers.open() as page:
        page.settings(steps=QUICK)
        page.generate("a red desert at dawn", cards=1)
        seed = page.field("form-seed").input_value()
        download = page.download(page.button("Download"))
        file = tmp_path / download.suggested_filename
        download.save_as(file)
    with browsers.open() as page:
        told = page.page.get_by_text("The form now has this image's settings and seed.")
        page.upload("receipt-file", file, until=told)
        expect(page.field("form-prompt")).to_have_value("a red desert at dawn")
        expect(page.field("form-seed")).to_have_value(seed)


@pytest.mark.long
def test_an_error_is_told_in_plain_words(browsers: Browsers) -> None:
    with browsers.open() as page:
        page.settings(width=130)
        page.field("form-prompt").fill("a lake")
        page.button("Generate").click()
        expect(page.page.get_by_text("Must be a multiple of 8, not 130.").first).to_be_visible()
        expect(page.field("form-prompt")).to_have_value("a lake")


@pytest.mark.long
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
                page.enter("search-query", "flowers", until=page.page.get_by_text("% match"))
            shown = page.button("Upload") if tab == "Batches" else page.cards().locator("img")
            expect(shown.first).to_be_visible()
            wide = page.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= PHONE[0], tab
            page.keep(tab)
        assert page.hosts == {address.removeprefix("http://")}


@pytest.mark.long
def test_a_lora_and_a_controlnet_are_chosen_with_their_scales(
    browsers: Browsers, image_file: Path
) -> None:
    with browsers.open() as page:
        page.page.get_by_text("ControlNets", exact=True).click()
        page.upload("control-file", image_file, until=page.button("ControlNet: field.png"))
        scale = page.page.get_by_role("slider", name="Scale")
        scale.press("End")
        expect(scale).to_have_value("2")
        page.page.get_by_text("LoRAs", exact=True).first.click()
        page.keep("unfolded")
        words = page.page.get_by_text("Trigger words for the prompt: film grain")
        page.pick(page.field("form-loras"), "grain", until=words)
        page.settings(steps=QUICK)
        scale = page.page.get_by_role("slider", name="grain: scale")
        for _ in range(4):
            scale.press("ArrowLeft")
        expect(scale).to_have_value("0.8")
        page.generate("film grain, green hills at noon", cards=1)
        page.choose(page.cards().first, "Show receipt")
        dialog = page.page.get_by_role("dialog")
        dialog.get_by_text("Receipt", exact=True).last.click()
        receipt = page.download(dialog.get_by_role("button", name="Download receipt"))
        made = json.loads(receipt.path().read_text())
        (lora,), (control,) = made["loras"], made["controls"]
        assert (lora["name"], lora["scale"]) == ("grain", 0.8)
        assert (control["name"], control["preprocess"]) == ("edges", "canny")
        assert control["scale"] == 2
        assert not page.broken

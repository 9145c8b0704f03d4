"""The Generate tab: the form, its jobs, and what a reload finds again."""

import json
import uuid
from typing import Any

import pytest
from msgspec import structs
from PIL import Image
from streamlit.testing.v1 import AppTest

import darkroom
from darkroom.playground import filling, form, submission
from tests.images import data_url, encode, png
from tests.processes import ApiProcess
from tests.unit.playground.conftest import Open, button, plain, run_until, said


@pytest.fixture
def session() -> str:
    """A session that nobody used."""
    return f"page-{uuid.uuid4().hex[:12]}"


def labels(page: AppTest) -> list[str]:
    return [one.label for one in page.button]


def choose(page: AppTest, image_id: str, action: str) -> None:
    page.menu_button(key=f"menu-{image_id}").click(action)
    page.run()


def generate(page: AppTest, prompt: str) -> None:
    page.text_area(key="form-prompt").set_value(prompt)
    button(page, "Generate").click()
    page.run()
    run_until(page, "the result", lambda: "Vary" in labels(page))


def newest(client: darkroom.Client, session: str) -> darkroom.Job:
    return client.jobs.list(session_id=session).page().data[0]


def test_a_page_without_a_session_gets_one_and_keeps_it_in_its_address(open_page: Open) -> None:
    page = open_page()
    name = page.session_state["session"]
    assert page.query_params["session"] == name
    assert "Your images appear here" in said(page)
    again = open_page()
    assert again.session_state["session"] != name


@pytest.mark.parametrize("name", ["-begins with a hyphen", "é", "x" * 65])
def test_a_name_that_no_session_can_have_is_told(open_page: Open, name: str) -> None:
    page = open_page(name)
    assert "not a valid session name" in said(page)
    assert not page.tabs


def test_the_form_becomes_a_job_and_its_seed_can_be_kept(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.text_input(key="form-negative").set_value("a blue hat")
    page.number_input(key="form-count").set_value(2)
    page.number_input(key="form-steps").set_value(3)
    generate(page, "a red hat")
    job = newest(client, session)
    assert (job.prompt, job.negative_prompt, job.steps) == ("a red hat", "a blue hat", 3)
    assert len(job.seeds) == 2
    for seed in job.seeds:
        assert f"seed {seed}" in said(page)
    assert page.session_state["form-seed"] == job.seeds[0]


def test_increasing_seeds_go_on_where_the_last_images_ended(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.segmented_control(key="form-seed-mode").set_value("Increasing")
    page.run()
    page.number_input(key="form-seed").set_value(7)
    page.number_input(key="form-count").set_value(2)
    generate(page, "a red hat")
    assert newest(client, session).seeds == (7, 8)
    assert page.session_state["form-seed"] == 9


def test_a_shape_sets_width_and_height(open_page: Open, session: str) -> None:
    page = open_page(session)
    square = page.session_state["form-width"]
    assert page.session_state["form-shape"] == "1:1"
    page.segmented_control(key="form-shape").set_value("16:9")
    page.run()
    width, height = page.session_state["form-width"], page.session_state["form-height"]
    assert width % 8 == height % 8 == 0
    assert abs(width / height - 16 / 9) < 0.15
    assert abs(width * height / square**2 - 1) < 0.15
    page.number_input(key="form-width").set_value(square)
    page.run()
    assert page.session_state["form-shape"] is None


def test_an_error_stays_until_the_next_action(open_page: Open, session: str) -> None:
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("other.png", png(), "image/png")
    page.run()
    page.run()  # as the end of a job draws the page anew
    assert "has no receipt" in said(page)
    button(page, "Dismiss").click()
    page.run()
    assert "has no receipt" not in said(page)


def test_same_seed_again_makes_the_same_image(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    first = newest(client, session)
    button(page, "Same seed again").click()
    page.run()
    run_until(page, "the second image", lambda: len(page.menu_button) == 2)
    second = newest(client, session)
    assert second.id != first.id
    assert second.images[0].sha256 == first.images[0].sha256
    assert page.session_state["form-seed-mode"] == "Fixed"
    assert page.session_state["form-seed"] == first.seeds[0]


def test_vary_starts_from_the_image_with_another_seed(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    first = newest(client, session)
    button(page, "Vary").click()
    page.run()
    second = newest(client, session)
    assert second.kind == "img2img"
    assert second.init_image == first.images[0].id
    assert (second.strength, second.resize_mode) == (0.5, "fill")
    assert (second.width, second.height) == (first.width, first.height)
    assert second.seeds != first.seeds


@pytest.mark.long
def test_an_upload_becomes_the_initial_image_until_it_is_put_away(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.file_uploader(key="initial-file-0").upload("mine.png", png(), "image/png")
    page.run()
    page.slider(key="form-strength").set_value(0.35)
    generate(page, "the same at night")
    job = newest(client, session)
    assert job.kind == "img2img"
    assert job.init_image is not None
    assert job.init_image.startswith("upl_")
    assert job.strength == 0.35
    page.button(key="chip-initial").click()
    page.run()
    button(page, "Generate").click()
    page.run()
    assert newest(client, session).kind == "txt2img"


@pytest.mark.long
def test_the_result_has_the_shape_of_its_initial_image_unless_told(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    wide = png("red", 256, 128)
    page = open_page(session)
    page.file_uploader(key="initial-file-0").upload("mine.png", wide, "image/png")
    page.run()
    generate(page, "the same at night")
    job = newest(client, session)
    assert job.width == 2 * job.height
    assert job.resize_mode == "fill"
    page.selectbox(key="form-resize").set_value("fit")
    page.number_input(key="form-width").set_value(64)
    page.number_input(key="form-height").set_value(64)
    page.run()
    button(page, "Generate").click()
    page.run()
    job = newest(client, session)
    assert (job.width, job.height, job.resize_mode) == (64, 64, "fit")


def test_a_dropped_image_fills_the_form_from_its_receipt(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    made = client.generate(
        "a green hat", negative_prompt="rain", seed=41, steps=7, guidance_scale=2.5, model="sim"
    )
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("made.png", made[0].bytes(), "image/png")
    page.run()
    state = page.session_state
    filled = {name: state[f"form-{name}"] for name in ("prompt", "negative", "seed", "steps")}
    assert filled == {"prompt": "a green hat", "negative": "rain", "seed": 41, "steps": 7}
    assert (state["form-guidance"], state["form-seed-mode"]) == (2.5, "Fixed")


def test_an_image_without_a_receipt_is_told(open_page: Open, session: str) -> None:
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("other.png", png(), "image/png")
    page.run()
    assert "has no receipt" in said(page)
    assert not page.exception


@pytest.mark.long
@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("form-prompt", "  ", "Describe the image in a few words"),
        ("form-width", 130, "Must be a multiple of 8"),
    ],
)
def test_what_the_server_does_not_take_is_told_and_nothing_is_lost(
    open_page: Open, session: str, field: str, value: str | int, sentence: str
) -> None:
    page = open_page(session)
    page.text_area(key="form-prompt").set_value("a red hat")
    if isinstance(value, int):
        page.number_input(key=field).set_value(value)
    else:
        page.text_area(key=field).set_value(value)
    button(page, "Generate").click()
    page.run()
    assert sentence in said(page)
    assert page.session_state[field] == value


def test_a_reload_finds_the_running_job_and_it_can_be_canceled(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    # Nobody serves this model at such a size within a blink: it waits or runs for a while.
    handle = client.jobs.submit("a slow hat", session_id=session, num_images=16, steps=100)
    page = open_page(session)
    if "Cancel" in labels(page):
        button(page, "Cancel").click()
        page.run()
    run_until(page, "the end", lambda: client.jobs.get(handle.id).is_final)
    run_until(page, "what is said of it", lambda: not page.get("progress"))
    assert page.session_state["form-prompt"] == "a slow hat"
    state = client.jobs.get(handle.id).state
    assert "Canceled" in said(page) if state == "canceled" else "Vary" in labels(page)


def test_the_receipt_is_shown_and_a_star_is_kept(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    image = newest(client, session).images[0]
    button(page, "Star").click()
    page.run()
    assert client.images.get(image.id).starred
    assert "Remove star" in labels(page)
    choose(page, image.id, "receipt")
    shown = json.loads(page.json[0].value)
    assert (shown["seed"], shown["prompt"]) == (image.seed, "a red hat")


def test_reproduce_says_that_every_pixel_is_equal(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    choose(page, newest(client, session).images[0].id, "reproduce")
    run_until(page, "the verdict", lambda: "Identical" in said(page))
    assert "Identical" in said(page)


def test_a_size_that_cannot_be_is_told_at_its_field_and_not_replaced(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.number_input(key="form-width").set_value(100_000)
    page.number_input(key="form-height").set_value(65)
    page.text_area(key="form-prompt").set_value("a red hat")
    button(page, "Generate").click()
    page.run()
    assert page.session_state["form-width"] == 100_000
    assert "not 100000" in said(page)
    assert "not 65" in said(page)
    assert client.jobs.list(session_id=session).take(1) == []


def test_a_new_look_at_a_session_carries_no_initial_image_over(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    upload = client.uploads.create(png())
    client.jobs.submit("a red hat", session_id=session, init_image=upload.id).wait()
    page = open_page(session)
    assert page.session_state["form-prompt"] == "a red hat"
    assert "form-initial" not in page.session_state


def test_jobs_of_other_sessions_can_be_found(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    client.jobs.submit("made in a shell", session_id=session)
    page = open_page()
    page.session_state["sessions"] = True
    page.run()
    [found] = [each for each in page.button if each.label.startswith("made in a shell")][:1]
    found.click()
    page.run()
    assert page.session_state["session"] == session


@pytest.mark.long
def test_a_second_pass_makes_larger_images_and_fills_the_form_again(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.toggle(key="form-hires").set_value(True).run()
    page.slider(key="form-hires-scale").set_value(1.5)
    page.selectbox(key="form-upscaler").set_value("lanczos")
    generate(page, "a red circle")
    job = newest(client, session)
    assert job.hires is not None
    assert (job.hires.scale, job.hires.upscaler) == (1.5, "lanczos")
    assert job.images[0].width == job.width * 3 // 2
    again = open_page(session)
    assert again.session_state["form-hires"] is True
    assert again.session_state["form-hires-scale"] == 1.5


@pytest.mark.long
def test_weights_and_long_prompts_are_asked_for_and_fill_the_form_again(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.checkbox(key="form-weighted").set_value(True)
    page.checkbox(key="form-long").set_value(True)
    generate(page, "a (red:1.2) circle")
    job = newest(client, session)
    assert (job.prompt_syntax, job.long_prompt) == ("weighted", True)
    again = open_page(session)
    assert (again.session_state["form-weighted"], again.session_state["form-long"]) == (True, True)


@pytest.mark.long
def test_an_image_is_upscaled_from_its_card(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red circle")
    first = newest(client, session)
    choose(page, first.images[0].id, "upscale")
    page.select_slider(key="upscale-scale").set_value(1.5)
    page.button(key="upscale-submit").click()
    page.run()
    job = client.jobs.wait(newest(client, session), 60)
    assert (job.kind, job.init_image) == ("upscale", first.images[0].id)
    assert job.images[0].width == first.images[0].width * 3 // 2


def test_a_second_pass_of_unusual_values_fills_the_form(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    hires: Any = {"scale": 1.2, "strength": 0.02, "steps": 100, "upscaler": "lanczos"}
    client.jobs.submit("a red hat", session_id=session, steps=7, hires=hires).wait()
    page = open_page(session)
    generate(page, "a blue hat")
    job = newest(client, session)
    assert job.prompt == "a blue hat"
    assert {name: getattr(job.hires, name) for name in hires} == hires


def test_a_second_pass_that_the_form_cannot_show_is_told_and_made_again(
    open_page: Open, client: darkroom.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.jobs.submit("a red hat", session_id=session, hires={"scale": 1.02}).wait()
    page = open_page(session)
    assert page.session_state["form-hires-scale"] == 1.05
    notices: list[str] = []  # of every run: the end of a job makes the page run again
    monkeypatch.setattr("streamlit.warning", lambda text, **_: notices.append(plain(text)))
    button(page, "Same seed again").click()
    page.run()
    assert any("scales of 1.05 to 4; the image had 1.02" in notice for notice in notices)
    job = newest(client, session)
    assert job.hires is not None
    assert job.hires.scale == 1.02


def test_a_second_pass_without_steps_of_its_own_follows_the_first(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    client.jobs.submit("a red hat", session_id=session, steps=7, hires={"scale": 1.5}).wait()
    page = open_page(session)
    page.number_input(key="form-steps").set_value(9)
    generate(page, "a blue hat")
    job = newest(client, session)
    assert job.hires is not None
    assert job.hires.steps == 9


def test_a_low_strength_fills_the_form(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    start = client.uploads.create(png())
    client.jobs.submit(
        "a red hat", session_id=session, init_image=start.id, strength=0.02, steps=100
    ).wait()
    page = open_page(session)
    assert page.session_state["form-strength"] == 0.02
    button(page, "Same seed again").click()
    page.run()
    assert not page.exception
    assert newest(client, session).strength == 0.02


@pytest.mark.parametrize("way", ["mask_image", "mask_from_alpha", "expand"])
def test_same_seed_again_repaints_the_same_part(
    open_page: Open,
    client: darkroom.Client,
    session: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    picture = Image.new("RGB", (64, 64), "red")
    picture.putalpha(mask)
    masks: dict[str, dict[str, Any]] = {
        "mask_image": {"mask_image": client.uploads.create(encode(mask)).id},
        "mask_from_alpha": {"mask_from_alpha": True},
        "expand": {"expand": {"left": 64}},
    }
    own: dict[str, Any] = {"mask_blur": 2, "preserve_unmasked": False, "output_format": "webp"}
    if way != "expand":
        own["padding_mask_crop"] = 8
    first = client.jobs.submit(
        "a hat",
        session_id=session,
        init_image=client.uploads.create(encode(picture)).id,
        **masks[way],
        **own,
        true_cfg_scale=2,
    ).wait()
    page = open_page(session)
    notices: list[str] = []  # of every run: the end of a job makes the page run again
    monkeypatch.setattr("streamlit.warning", lambda text, **_: notices.append(plain(text)))
    button(page, "Same seed again").click()
    page.run()
    left_out = "The expansion" if way == "expand" else "The mask"
    for name in ("true_cfg_scale", left_out):
        told = any(f"{name} is left out: this form has none." in notice for notice in notices)
        assert told is (way != "mask_image" or name == "true_cfg_scale")
    run_until(page, "the second image", lambda: len(page.menu_button) == 2)
    second = newest(client, session)
    assert second.id != first.id
    assert (second.kind, second.strength) == ("inpaint", first.strength)
    assert (second.true_cfg_scale, second.output_format) == (2, "webp")
    assert second.images[0].sha256 == first.images[0].sha256


@pytest.mark.long
def test_a_mask_fills_the_form(open_page: Open, client: darkroom.Client, session: str) -> None:
    start, mask = client.uploads.create(png()), client.uploads.create(png("white"))
    made = client.generate(
        "a hat", session_id=session, init_image=start.id, mask_image=mask.id, strength=1
    )
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("made.png", made[0].bytes(), "image/png")
    page.run()
    assert "left out" not in said(page)
    assert page.session_state["form-mask"].id == mask.id
    assert page.session_state["form-strength"] == 1
    page.button(key="chip-mask").click()
    page.run()
    assert "form-mask" not in page.session_state


@pytest.mark.long
@pytest.mark.parametrize("options", [{"method": "lanczos"}, {"method": "latent", "steps": 9}])
def test_same_seed_again_upscales_the_same_image_again(
    open_page: Open, client: darkroom.Client, session: str, options: dict[str, Any]
) -> None:
    made = client.generate("a red hat", session_id=session)
    first = client.images.upscale(made[0], 1.5, **options).wait()
    page = open_page(session)
    button(page, "Same seed again").click()
    page.run()
    run_until(page, "the second image", lambda: len(page.menu_button) == 3)
    second = newest(client, session)
    assert second.id != first.id
    assert (second.kind, second.init_image, second.hires) == ("upscale", made[0].id, first.hires)
    assert second.images[0].sha256 == first.images[0].sha256


def test_a_grid_is_a_batch_over_two_settings(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.text_area(key="form-prompt").set_value("a red hat")
    page.selectbox(key="form-grid-x").set_value("Steps")
    page.selectbox(key="form-grid-y").set_value("Words of the prompt")
    page.run()
    page.text_input(key="form-grid-x-values").set_value("2, 3")
    page.text_input(key="form-grid-y-values").set_value("hat, cap, scarf")
    page.run()
    button(page, "Make 6 images").click()
    page.run()
    [batch] = [one for one in client.batches.list().page().data if one.session_id == session]
    assert batch.name == "Grid: Steps × Words of the prompt"
    jobs = {one.custom_id: one for one in client.batches.items(batch)}
    assert (jobs["0-0"].prompt, jobs["2-1"].prompt) == ("a red hat", "a red scarf")
    assert (jobs["0-0"].steps, jobs["2-1"].steps) == (2, 3)
    assert len({job.seeds for job in jobs.values()}) == 1
    run_until(page, "all its images", lambda: "6 of 6 images" in said(page))
    page.text_input(key="form-grid-x-values").set_value("2, many")
    page.run()
    assert "write numbers" in said(page)


def start_grid(page: AppTest, name: str, values: str) -> None:
    page.text_area(key="form-prompt").set_value("a red hat")
    page.selectbox(key="form-grid-x").set_value(name)
    page.run()
    page.text_input(key="form-grid-x-values").set_value(values)
    page.run()
    cells = values.count(",") + 1
    button(page, f"Make {cells} images").click()
    page.run()
    assert not page.exception, page.exception


def batch_of(client: darkroom.Client, session: str) -> darkroom.Batch:
    [batch] = [one for one in client.batches.list().page().data if one.session_id == session]
    return batch


def test_a_page_is_not_held_up_by_a_grid_that_waits(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.selectbox(key="form-model").set_value("unserved")
    page.run()
    start_grid(page, "Steps", "2, 3")
    assert "0 of 2 images" in said(page)
    client.batches.cancel(batch_of(client, session))


def test_a_grid_repaints_what_was_painted(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.file_uploader(key="initial-file-0").upload("mine.png", png(), "image/png")
    page.run()
    drawing = data_url(png("white"))
    page.session_state["form-mask"] = form.Mask(drawing, drawing)
    start_grid(page, "Strength", "0.5, 1")
    assert not page.error, said(page)
    jobs = list(client.batches.items(batch_of(client, session)))
    assert [(job.kind, job.strength) for job in jobs] == [("inpaint", 0.5), ("inpaint", 1)]
    run_until(page, "all its images", lambda: "2 of 2 images" in said(page))


def test_a_grid_may_have_long_values(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page, long = open_page(session), "wide hat " * 40
    start_grid(page, "Words of the prompt", f"hat, {long}a, {long}b")
    assert not page.error, said(page)
    prompts = [job.prompt for job in client.batches.items(batch_of(client, session))]
    assert prompts == ["a red hat", f"a red {long}a", f"a red {long}b"]
    run_until(page, "all its images", lambda: "3 of 3 images" in said(page))


@pytest.mark.parametrize(
    ("name", "values", "sentence"),
    [
        ("Words of the prompt", ", cap", "a value is missing"),
        ("Words of the prompt", "hat,, cap", "a value is missing"),
        ("Guidance", "nan, 2", "write numbers"),
    ],
)
def test_values_that_a_grid_cannot_have_are_told(
    open_page: Open, session: str, name: str, values: str, sentence: str
) -> None:
    page = open_page(session)
    page.text_area(key="form-prompt").set_value("a red hat")
    page.selectbox(key="form-grid-x").set_value(name)
    page.run()
    page.text_input(key="form-grid-x-values").set_value(values)
    page.run()
    assert sentence in said(page)
    assert page.button(key="grid-submit").disabled


def test_what_the_form_has_not_is_told_and_made_again(
    open_page: Open, client: darkroom.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = client.uploads.create(png()).id
    own: dict[str, Any] = {
        "masked_content": "fill",
        "padding_mask_crop": 8,
        "preserve_unmasked": False,
        "references": [{"image": picture, "scale": 0.5}],
        "output_format": "jpeg",
        "output_quality": 50,
    }
    mask = client.uploads.create(png("white")).id
    job = client.jobs.submit(
        "a hat", session_id=session, seed=3, init_image=picture, mask_image=mask, **own
    )
    first = job.wait()
    page = open_page(session)
    notices: list[str] = []  # of every run: the end of a job makes the page run again
    monkeypatch.setattr("streamlit.warning", lambda text, **_: notices.append(plain(text)))
    choose(page, first.images[0].id, "reuse")
    for name in own:
        assert any(notice.startswith(f"{name} is left out") for notice in notices), name
    button(page, "Same seed again").click()
    page.run()
    run_until(page, "the second image", lambda: len(page.menu_button) == 2)
    second = newest(client, session)
    assert second.id != first.id
    assert second.references == first.references
    assert second.images[0].sha256 == first.images[0].sha256


def test_a_controlnet_follows_an_upload_and_an_earlier_image(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    page.file_uploader(key="control-file-0").upload("mine.png", png(), "image/png").run()
    page.slider(key="form-control-0-scale").set_value(0.5)
    page.slider(key="form-control-0-part").set_range(0.25, 0.75)
    generate(page, "a red hat")
    first = newest(client, session)
    [control] = first.controls
    assert (control.name, control.preprocess, control.scale) == ("edges", "canny", 0.5)
    assert (control.start, control.end, control.low, control.high) == (0.25, 0.75, 100, 200)
    choose(page, first.images[0].id, "control")
    page.segmented_control(key="form-control-1-preprocess").set_value("none").run()
    menu = page.menu_button(key=f"menu-{first.images[0].id}")
    assert not any("Follow" in option for option in menu.options)  # there is no room for a third
    button(page, "Generate").click().run()
    second = newest(client, session)
    assert second.controls[0] == control
    assert second.controls[1].image == first.images[0].id
    assert (second.controls[1].preprocess, second.controls[1].low) == ("none", None)
    page.button(key="chip-control-0").click().run()
    run_until(page, "the second image", lambda: len(page.menu_button) == 2)
    button(page, "Generate").click().run()
    assert newest(client, session).controls == second.controls[1:]


def test_same_seed_again_follows_the_same_image(
    open_page: Open, client: darkroom.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control: Any = {
        "name": "edges",
        "image": client.uploads.create(png()).id,
        **{"scale": 0.8, "start": 0.0, "end": 0.5, "preprocess": "none"},
    }
    first = client.jobs.submit(
        "a red hat", session_id=session, controls=[control], resize_mode="fit"
    ).wait()
    page = open_page(session)
    assert page.session_state["form-controls"] == []  # it was not chosen on this page
    notices: list[str] = []  # of every run: the end of a job makes the page run again
    monkeypatch.setattr("streamlit.warning", lambda text, **_: notices.append(plain(text)))
    button(page, "Same seed again").click().run()
    assert "resize_mode is left out: this form has none." in notices
    run_until(page, "the second image", lambda: len(page.menu_button) == 2)
    second = newest(client, session)
    assert second.id != first.id
    assert second.images[0].sha256 == first.images[0].sha256
    button(page, "Generate").click().run()
    assert submission.settings_of(newest(client, session))["controls"] == [control]
    run_until(page, "the third image", lambda: len(page.menu_button) == 3)
    button(page, "Vary").click().run()
    assert newest(client, session).controls == ()  # it starts from the image itself


def test_a_draft_fills_a_form_that_has_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """In JSON there are neither tuples nor, from JavaScript, whole floats."""
    values = {"form-control-0-part": (0.0, 1.0), "form-guidance": 5.0}
    monkeypatch.setattr("streamlit.session_state", values)
    monkeypatch.setattr(form, "prepare", lambda: None)
    filling.restore({"form-control-0-part": [0.25, 0.75], "form-guidance": 7}, {})
    assert repr(values) == "{'form-control-0-part': (0.25, 0.75), 'form-guidance': 7.0}"


def test_what_a_controlnet_cannot_do_is_told_at_its_fields(
    open_page: Open, client: darkroom.Client, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(session)
    page.text_area(key="form-prompt").set_value("a red hat")
    page.file_uploader(key="control-file-0").upload("mine.png", png(), "image/png").run()
    page.slider(key="form-control-0-part").set_range(0.5, 0.5)
    button(page, "Generate").click().run()
    assert client.jobs.list(session_id=session).take(1) == []
    [folded] = [one for one in page.expander if one.label == "ControlNets"]
    assert any("end must be greater than start" in one.value for one in folded.markdown)
    without = [structs.replace(model, controlnets=()) for model in client.models.list()]
    monkeypatch.setattr(form, "models", lambda: without)
    page.selectbox(key="form-model").set_value("unserved").run()
    assert "ControlNets" not in [one.label for one in page.expander]
    button(page, "Generate").click().run()
    job = newest(client, session)
    assert (job.model, job.controls) == ("unserved", ())
    client.jobs.cancel(job)


def test_own_keys_are_asked_for_and_the_servers_is_not_lent(
    open_page: Open, api: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_PLAYGROUND_ASKS_FOR_KEY", "1")
    page = open_page()
    assert not page.tabs
    page.text_input(key="entered-key").set_value("drk_wrong")
    button(page, "Open").click()
    page.run()
    assert not page.tabs
    assert page.error
    page.text_input(key="entered-key").set_value(api.key)
    button(page, "Open").click()
    page.run()
    assert page.tabs
    button(page, "Sign out").click()
    page.run()
    assert not page.tabs

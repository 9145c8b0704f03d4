"""The tab Generate: the form, its jobs, and what is found again after a reload."""

import io
import json
import uuid

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import darkroom
from tests.unit.playground.conftest import Open, button, run_until, said


@pytest.fixture
def session() -> str:
    """A session that nobody used."""
    return f"page-{uuid.uuid4().hex[:12]}"


def labels(page: AppTest) -> list[str]:
    return [one.label for one in page.button]


def generate(page: AppTest, prompt: str) -> None:
    page.text_area(key="form-prompt").set_value(prompt)
    button(page, "Generate").click()
    page.run()
    run_until(page, "the result", lambda: "Vary" in labels(page))


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return buffer.getvalue()


def newest(client: darkroom.Client, session: str) -> darkroom.Job:
    return client.jobs.list(session_id=session).page().data[0]


def test_a_page_without_a_session_gets_one_and_keeps_it_in_its_address(open_page: Open) -> None:
    page = open_page()
    name = page.session_state["session"]
    assert page.query_params["session"] == name
    assert "Your pictures appear here" in said(page)
    again = open_page()
    assert again.session_state["session"] != name


@pytest.mark.parametrize("name", ["-begins with a hyphen", "é", "x" * 65])
def test_a_name_that_no_session_can_have_is_told(open_page: Open, name: str) -> None:
    page = open_page(name)
    assert "cannot be the name of a session" in said(page)
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
        assert f"seed **{seed}**" in said(page)
    assert page.session_state["form-seed"] == job.seeds[0]


def test_same_seed_again_makes_the_same_picture(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    first = newest(client, session)
    button(page, "Same seed again").click()
    page.run()
    run_until(page, "the second picture", lambda: labels(page).count("Vary") == 2)
    second = newest(client, session)
    assert second.id != first.id
    assert second.images[0].sha256 == first.images[0].sha256
    assert page.session_state["form-seed-mode"] == "Keep"
    assert page.session_state["form-seed"] == first.seeds[0]


def test_vary_starts_from_the_picture_with_another_seed(
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
    button(page, "Without it").click()
    page.run()
    button(page, "Generate").click()
    page.run()
    assert newest(client, session).kind == "txt2img"


def test_the_result_has_the_shape_of_its_initial_image_unless_told(
    open_page: Open, client: darkroom.Client, session: str
) -> None:
    wide = io.BytesIO()
    Image.new("RGB", (256, 128), "red").save(wide, "PNG")
    page = open_page(session)
    page.file_uploader(key="initial-file-0").upload("mine.png", wide.getvalue(), "image/png")
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


def test_a_dropped_picture_fills_the_form_from_its_receipt(
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
    assert (state["form-guidance"], state["form-seed-mode"]) == (2.5, "Keep")


def test_a_picture_without_a_receipt_is_told(open_page: Open, session: str) -> None:
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("other.png", png(), "image/png")
    page.run()
    assert "carries no receipt" in said(page)
    assert not page.exception


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [("form-prompt", "  ", "The prompt is empty"), ("form-width", 130, "**Width:**")],
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
    button(page, "☆ Star").click()
    page.run()
    assert client.images.get(image.id).starred
    assert ":orange[★] Starred" in labels(page)
    button(page, "Show receipt").click()
    page.run()
    shown = json.loads(page.json[0].value)
    assert (shown["seed"], shown["prompt"]) == (image.seed, "a red hat")


def test_reproduce_says_that_every_pixel_is_equal(open_page: Open, session: str) -> None:
    page = open_page(session)
    generate(page, "a red hat")
    button(page, "Reproduce").click()
    page.run()
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
    assert "not 100000." in said(page)
    assert "A multiple of 8, not 65." in said(page)
    assert "These settings cannot be used" in said(page)
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

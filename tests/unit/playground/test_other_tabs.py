"""The tabs Search, History and Batches, and a service that is down."""

import gzip
import json
import re
import shlex
import uuid
from typing import Any

import msgspec
import pytest

import darkroom
from darkroom._sync.batches import Batches
from darkroom._sync.images import Images
from darkroom._sync.transport import Request, Transport
from darkroom.playground.batches import _plain_cell
from darkroom.playground.formatting import escape
from tests.processes import free_port
from tests.unit.playground.conftest import Open, button, plain, run_until, said


def name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def menu(image_id: str) -> str:
    return f"menu-{image_id}"


def test_search_finds_an_image_and_takes_over_prompt_and_seed(
    open_page: Open, client: darkroom.Client
) -> None:
    session, word = name("search"), uuid.uuid4().hex[:10]
    (made,) = client.generate(f"a {word} hat on a hill", session_id=session, seed=99, steps=2)
    page = open_page(session, tab="Search")
    page.text_input(key="search-query").set_value(f"{word} hat")
    page.run()
    assert f"a {word} hat on a hill" in said(page)
    assert re.search(r"seed 99 · \d\d% match", plain(said(page)))
    page.menu_button(key=menu(made.id)).click("reuse")
    page.run()
    state = page.session_state
    assert state["tab"] == "Generate"
    assert (state["form-prompt"], state["form-seed"]) == (made.prompt, 99)
    assert state["form-steps"] == 2


def test_filters_narrow_a_search_and_more_like_this_needs_no_words(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("like")
    one, other = (client.generate(f"a hat, {n}", session_id=session, seed=n)[0] for n in (5, 6))
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.number_input(key="filter-seed").set_value(6)
    page.text_input(key="search-query").set_value("a hat")
    page.run()
    assert "seed 6 ·" in said(page)
    assert "seed 5 ·" not in said(page)
    page.number_input(key="filter-seed").set_value(None)
    page.run()
    page.menu_button(key=menu(one.id)).click("like")
    page.run()
    assert r"Similar to **a hat\, 5**" in said(page)
    # Not the image itself, but its neighbour.
    keys = [found.key for found in page.menu_button]
    assert menu(other.id) in keys
    assert menu(one.id) not in keys


def test_the_filter_for_starred_ones_needs_no_words(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("starred")
    one, other = (client.generate(f"a hat, {n}", session_id=session, seed=n)[0] for n in (5, 6))
    client.images.star(other)
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.toggle(key="filter-starred").set_value(True)
    page.run()
    keys = [found.key for found in page.menu_button]
    assert menu(other.id) in keys
    assert menu(one.id) not in keys


def test_history_is_newest_first_searchable_and_can_be_thinned_out(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("history")
    made = [client.generate(f"{what} by a lake", session_id=session)[0] for what in ("one", "two")]
    page = open_page(session, tab="History")
    assert [found.key for found in page.menu_button] == [menu(made[1].id), menu(made[0].id)]
    page.text_input(key="history-query").set_value("one by a lake")
    page.run()
    assert page.menu_button[0].key == menu(made[0].id)
    assert "% match" in plain(said(page))
    page.menu_button(key=menu(made[0].id)).click("delete")
    page.run()
    with pytest.raises(darkroom.errors.NotFoundError):
        client.images.get(made[0].id)
    assert menu(made[0].id) not in [found.key for found in page.menu_button]
    button(page, "Undo").click()
    page.run()
    assert menu(made[0].id) in [found.key for found in page.menu_button]
    assert client.images.get(made[0].id).sha256 == made[0].sha256


def test_several_images_are_starred_compared_and_deleted_at_once(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("several")
    made = [client.generate("a hat", session_id=session, seed=seed)[0] for seed in (1, 2, 3)]
    page = open_page(session, tab="History")
    page.toggle(key="history-selects").set_value(True)
    page.run()
    for image in made[:2]:
        page.checkbox(key=f"pick-{image.id}").set_value(True)
    page.run()
    page.button(key="history-star").click()
    page.run()
    page.toggle(key="history-starred").set_value(True)
    page.run()
    assert {one.key for one in page.checkbox} >= {f"pick-{image.id}" for image in made[:2]}
    assert f"pick-{made[2].id}" not in {one.key for one in page.checkbox}
    page.button(key="history-compare").click()
    page.run()
    assert [table.value.index.tolist() for table in page.table] == [["Seed"], ["Seed"]]
    page.segmented_control(key="compare-how").set_value("Slider")
    page.run()
    page.session_state["dialog"] = None
    page.button(key="history-delete").click()
    page.run()
    assert [image.id for image in client.sessions.images(session)] == [made[2].id]


def test_undo_restores_all_that_it_can_of_several_deletions(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("undo")
    made = [client.generate("a hat", session_id=session, seed=seed)[0] for seed in (1, 2, 3, 4)]
    # An image from which a waiting job starts cannot be deleted.
    waiting = client.jobs.submit("a cap", model="unserved", init_image=made[1].id)
    page = open_page(session, tab="History")
    page.toggle(key="history-selects").set_value(True)
    page.run()
    for image in made[:3]:
        page.checkbox(key=f"pick-{image.id}").set_value(True)
    page.run()
    page.button(key="history-delete").click()
    page.run()
    assert page.error
    assert [image.id for image in client.sessions.images(session)] == [made[3].id, made[1].id]
    page.checkbox(key=f"pick-{made[1].id}").set_value(False)
    page.checkbox(key=f"pick-{made[3].id}").set_value(True)
    page.run()
    page.button(key="history-delete").click()
    page.run()
    assert "3 images deleted." in said(page)
    waiting.cancel()
    client.jobs.delete(made[0].job_id or "")  # and with it what could be restored
    button(page, "Undo").click()
    page.run()
    assert page.error
    assert "1 image deleted." in said(page)
    kept = [image.id for image in client.sessions.images(session)]
    assert kept == [image.id for image in reversed(made[1:])]
    assert {f"pick-{image}" for image in kept} <= {one.key for one in page.checkbox}


def test_an_image_is_shown_large_with_what_makes_it_again(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("large")
    made = [client.generate("a hat", session_id=session, seed=seed)[0] for seed in (1, 2)]
    page = open_page(session, tab="History")
    page.button(key=f"open-{made[1].id}").click()
    page.run()
    prompt, seed, python, command, curl = (code.value for code in page.code)
    assert (prompt, seed) == ("a hat", "2")
    assert "seed=2" in python
    assert command.startswith("darkroom generate 'a hat' --model sim")
    assert json.loads(shlex.split(curl)[-1])["seed"] == 2
    assert page.button(key="image-previous").disabled
    page.button(key="image-next").click()
    page.run()
    assert page.code[1].value == "1"


def test_history_shows_all_sessions_too(open_page: Open, client: darkroom.Client) -> None:
    (made,) = client.generate("a hat", session_id=name("other"))
    page = open_page(name("mine"), tab="History")
    page.segmented_control(key="history-where").set_value("All sessions")
    page.run()
    assert menu(made.id) in [found.key for found in page.menu_button]


def test_a_session_without_images_says_so(open_page: Open) -> None:
    assert "no images yet" in said(open_page(name("empty"), tab="History"))


def test_near_duplicates_are_folded_and_shown_again(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("fold")
    made = [client.generate("a hat", session_id=session, seed=seed)[0] for seed in (1, 2, 3)]
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.run()
    newest = made[-1].id
    assert [found.key for found in page.menu_button] == [menu(newest)]
    assert button(page, "2 like this").key == f"unfold-{newest}"
    button(page, "2 like this").click()
    page.run()
    assert [found.key for found in page.menu_button] == [menu(one.id) for one in reversed(made)]
    button(page, "2 like this").click()
    page.run()
    assert len(page.menu_button) == 1
    page.toggle(key="search-fold").set_value(False)
    page.run()
    assert len(page.menu_button) == 3


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What clients send and wait for a JSON document of; it is sent nevertheless."""
    sent: list[Request] = []
    send = Transport.json

    def kept(transport: Transport, request: Request) -> object:
        sent.append(request)
        return send(transport, request)

    monkeypatch.setattr(Transport, "json", kept)
    return sent


def test_a_search_asks_for_a_page_per_step_and_shows_it_as_the_api_folds_it(
    open_page: Open,
    client: darkroom.Client,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("darkroom.playground.search._PAGE", 2)
    monkeypatch.setattr("darkroom.playground.search.PAGE", 1)
    monkeypatch.setattr("darkroom.playground.gallery.PAGE", 1)
    session = name("steps")
    client.generate("a tall hat", session_id=session)
    made = client.generate("a red cap", session_id=session, num_images=4)
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.run()
    own = [one for one in requests if one.path == "/v1/search"][-1:]
    requests.clear()
    page.run()
    page.run()
    assert own
    assert [one for one in requests if one.path == "/v1/search"] == []
    assert len(page.menu_button) == 1
    for _ in range(2):
        button(page, "Show more").click()
        page.run()
        assert not page.exception
    assert len([one for one in requests if one.path == "/v1/search"]) == 2
    assert len(page.menu_button) == 3  # pages of (cap, cap), (cap, cap), (hat)
    assert not [one for one in page.button if one.label == "Show more"]
    for folded in [one for one in page.button if one.label == "1 like this"]:
        folded.click()
    page.run()
    keys = {found.key for found in page.menu_button}
    assert keys > {menu(image.id) for image in made}
    assert len(keys) == 5


def test_unfolded_images_do_not_push_out_other_results(
    open_page: Open, client: darkroom.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom.playground.gallery.PAGE", 2)
    session = name("unfold")
    (other,) = client.generate("a tall hat", session_id=session)
    client.generate("a red cap", session_id=session, num_images=3)
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.run()
    button(page, "2 like this").click()
    page.run()
    assert len(page.menu_button) == 4
    assert menu(other.id) in [found.key for found in page.menu_button]
    assert not [one for one in page.button if one.label == "Show more"]


def test_a_batchs_names_and_a_receipts_names_are_drawn_as_text(
    open_page: Open, client: darkroom.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("darkroom._sync.batches._POLL_SECONDS", 0.05)
    session, link = name("escape"), "[x](https://e.example)"
    batch = client.batches.submit(
        [{"prompt": "a hat", "custom_id": link, "steps": 2}], session_id=session
    )
    client.batches.wait(batch, 60)
    page = open_page(session, tab="Batches")
    assert f"· {escape(link)}" in said(page)
    assert link not in said(page)
    (made,) = client.generate("a hat", session_id=session)
    inspect = Images.inspect

    def of_another(images: Images, file: bytes) -> object:
        found = inspect(images, file)
        return msgspec.structs.replace(found, job={**found.job, "model": link, "scheduler": link})

    monkeypatch.setattr(Images, "inspect", of_another)
    page = open_page(session)
    page.file_uploader(key="receipt-file-0").upload("made.png", made.bytes(), "image/png")
    page.run()
    told = said(page)
    assert f"The model {link} is not available here" in plain(told)
    assert f"has no scheduler {link}" in plain(told)
    assert link not in told


def test_a_file_is_searched_with_and_the_order_is_chosen(
    open_page: Open, client: darkroom.Client
) -> None:
    session = name("drop")
    one, other = (
        client.generate(f"a {what} hat", session_id=session)[0] for what in ("red", "tall")
    )
    page = open_page(session, tab="Search")
    page.selectbox(key="filter-session").set_value("this one")
    page.run()
    assert page.segmented_control(key="search-order").disabled
    page.file_uploader(key="search-file-0").upload(
        "hat.png", client.images.download(one.id), "image/png"
    )
    page.run()
    assert r"Similar to **hat\.png**" in said(page)
    assert menu(other.id) in [found.key for found in page.menu_button]
    page.text_input(key="search-query").set_value("a red hat")
    page.run()
    assert "Similar to" not in said(page)
    page.segmented_control(key="search-order").set_value("similarity")
    page.run()
    assert page.menu_button[0].key == menu(one.id)
    assert "100% match" in plain(said(page))


@pytest.mark.long
def test_a_file_is_checked_before_it_can_start(open_page: Open, client: darkroom.Client) -> None:
    session = name("batch")
    lines = b'{"prompt": "a *hat*", "seed": 7}\n{"prompt": "a scarf", "steps": 0}\n'
    page = open_page(session, tab="Batches")
    page.file_uploader(key="batch-file-0").upload("hats.jsonl", lines, "application/jsonl")
    page.run()
    assert "cannot be started" in said(page)
    first, wrong = (table.value for table in page.table)
    assert first["Prompt"].tolist() == [r"a \*hat\*"]
    assert (wrong["Row"].tolist(), wrong["Field"].tolist()) == (["2"], ["steps"])
    assert button(page, "Start 1 job").disabled
    page.toggle(key="batch-skip").set_value(True)
    page.run()
    assert "these rows will be skipped" in said(page)
    button(page, "Start 1 job").click()
    page.run()
    batch = client.batches.list().page().data[0]
    assert (batch.session_id, batch.counts.total, batch.invalid_lines) == (session, 1, 1)
    assert batch.name == "hats.jsonl"
    run_until(page, "its end", lambda: client.batches.get(batch.id).is_final)
    run_until(page, "the ZIP", lambda: [b for b in page.download_button if "ZIP" in b.label])
    assert r":orange-badge[partial] **hats\.jsonl**" in said(page)
    assert page.table[0].value["What to do"].tolist() == [
        r"Correct it in the file\, and upload these rows again\."
    ]
    (image,) = next(client.batches.results(batch.id)).images
    page.button(key=f"open-{image.id}").click()
    page.run()
    assert "7" in [code.value for code in page.code]


@pytest.mark.long
def test_a_failed_job_says_what_to_do(open_page: Open, client: darkroom.Client) -> None:
    session = name("failed")
    batch = client.batches.submit(
        [{"prompt": "a hat", "model": "unserved"}], start_within=0.2, name="<b>", session_id=session
    )
    client.batches.wait(batch, 60)
    page = open_page(session, tab="Batches")
    assert r"**\<b\>**" in said(page)
    assert page.table[0].value["What to do"].tolist() == [r"Retry it\; it then has no deadline\."]
    button(page, "Retry failed jobs").click()
    page.run()
    assert client.batches.get(batch).state in ("queued", "running")
    client.batches.cancel(batch)


@pytest.mark.long
def test_a_file_is_validated_once_and_started_once(
    open_page: Open,
    client: darkroom.Client,
    requests: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = name("once")
    page = open_page(session, tab="Batches")
    page.file_uploader(key="batch-file-0").upload("hats.csv", b"prompt,seed\na hat,7\n", "text/csv")
    page.run()
    page.run()
    assert [one.method for one in requests if one.path == "/v1/batches"].count("POST") == 1
    submit, attempts = Batches.submit, []

    def lost(batches: Batches, *given: Any, **options: Any) -> object:
        attempts.append(submit(batches, *given, **options))
        raise darkroom.errors.APIConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "submit", lost)
        button(page, "Start 1 job").click()
        page.run()
    assert "Darkroom does not answer" in said(page)
    button(page, "Start 1 job").click()
    page.run()
    assert "1 job accepted." in said(page)
    made = [one.id for one in client.batches.list() if one.session_id == session]
    assert made == [one.id for one in attempts]
    assert "batch-attempts" not in page.session_state


@pytest.mark.parametrize("sign", "=+-@\t\r")
def test_no_cell_of_the_errors_is_a_formula(sign: str) -> None:
    assert _plain_cell(f"{sign}1") == f"'{sign}1"
    assert _plain_cell(7) == 7


@pytest.mark.long
def test_a_file_whose_columns_are_changed_often_is_sent_once_for_each_change(
    open_page: Open, requests: list[Request]
) -> None:
    page = open_page(name("often"), tab="Batches")
    page.file_uploader(key="batch-file-0").upload("t.csv", b"sku,text\n1,a hat\n", "text/csv")
    page.run()
    changes = 6
    for number in range(changes):
        page.text_input(key="batch-template").set_value(f"{{text}}, {number}")
        page.run()
        assert page.table[0].value["Prompt"].tolist() == [rf"a hat\, {number}"]
    sent = [one for one in requests if (one.method, one.path) == ("POST", "/v1/batches")]
    assert len(sent) == 1 + changes


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("hats.csv", b"prompt,seed\na hat,7\n"),
        ("HATS.CSV.GZ", gzip.compress(b"prompt,seed\na hat,7\n", mtime=0)),
        ("hats.csv.jsonl", b'{"prompt": "a hat", "seed": 7}\n'),
    ],
)
def test_a_csv_is_known_by_the_end_of_its_name(open_page: Open, file: str, data: bytes) -> None:
    page = open_page(name("csv"), tab="Batches")
    page.file_uploader(key="batch-file-0").upload(file, data, "application/octet-stream")
    page.run()
    assert not page.error
    assert page.table[0].value["Prompt"].tolist() == ["a hat"]
    assert not button(page, "Start 1 job").disabled


@pytest.mark.long
def test_a_table_with_columns_of_its_own(open_page: Open, client: darkroom.Client) -> None:
    page = open_page(name("table"), tab="Batches")
    table = b"sku,name,prompt,colour\nH-1,hat,no,red\n"
    page.file_uploader(key="batch-file-0").upload("products.csv", table, "text/csv")
    page.run()
    assert not page.error
    button(page, "name").click()
    page.run()
    assert page.text_input(key="batch-template").value == "{name}"
    page.text_input(key="batch-template").set_value("a {colour} {name}")
    (sku,) = [one for one in page.multiselect if one.label == "sku"]
    sku.set_value(["custom_id", "metadata.sku"])
    page.run()
    assert not page.error
    row = page.table[0].value.iloc[0]
    assert (row["Prompt"], row["Name"]) == ("a red hat", r"H\-1")
    button(page, "Start 1 job").click()
    page.run()
    (job,) = client.batches.items(client.batches.list().page().data[0].id)
    assert (job.custom_id, job.prompt, job.metadata) == ("H-1", "a red hat", {"sku": "H-1"})


def test_a_table_without_a_prompt_asks_for_it(open_page: Open) -> None:
    page = open_page(name("ask"), tab="Batches")
    page.file_uploader(key="batch-file-0").upload("t.csv", b"sku,text\n1,a hat\n", "text/csv")
    page.run()
    assert "What are the columns of this table?" in said(page)
    assert not page.error
    (text,) = [one for one in page.multiselect if one.label == "text"]
    text.set_value(["prompt"])
    page.run()
    assert page.table[0].value["Prompt"].tolist() == ["a hat"]


def test_a_service_that_is_away_is_told_and_the_page_stands(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_URL", f"http://127.0.0.1:{free_port()}")
    page = open_page(name("away"))
    assert "Darkroom does not answer" in said(page)
    assert "make run" in said(page)

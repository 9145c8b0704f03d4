"""The tabs Search, History and Batches, and a service that is away."""

import uuid

import pytest

import darkroom
from tests.processes import free_port
from tests.unit.playground.conftest import Open, button, run_until, said


def name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def menu(image_id: str) -> str:
    return f"menu-{image_id}"


def test_search_finds_a_picture_and_takes_over_prompt_and_seed(
    open_page: Open, client: darkroom.Client
) -> None:
    session, word = name("search"), uuid.uuid4().hex[:10]
    (made,) = client.generate(f"a {word} hat on a hill", session_id=session, seed=99, steps=2)
    page = open_page(session, tab="Search")
    page.text_input(key="search-query").set_value(f"{word} hat")
    page.run()
    assert f"a {word} hat on a hill" in said(page)
    assert "seed 99 · score" in said(page)
    page.menu_button(key=menu(made.id)).click("take")
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
    assert r"Like **a hat\, 5**" in said(page)
    # Not the picture itself, but its neighbour.
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
    assert "score" in said(page)
    page.menu_button(key=menu(made[0].id)).click("delete")
    page.run()
    button(page, "Delete for good").click()
    page.run()
    with pytest.raises(darkroom.errors.NotFound):
        client.images.get(made[0].id)
    assert menu(made[0].id) not in [found.key for found in page.menu_button]


def test_a_session_without_pictures_says_so(open_page: Open) -> None:
    assert "no pictures yet" in said(open_page(name("empty"), tab="History"))


def test_a_file_is_checked_before_it_can_start(open_page: Open, client: darkroom.Client) -> None:
    session = name("batch")
    lines = b'{"prompt": "a hat", "seed": 7}\n{"prompt": "a scarf", "steps": 0}\n'
    page = open_page(session, tab="Batches")
    page.file_uploader(key="batch-file-0").upload("hats.jsonl", lines, "application/jsonl")
    page.run()
    assert "nothing can start as it is" in said(page)
    assert page.dataframe[0].value["line"].tolist() == [2]
    assert button(page, "Start 1 job").disabled
    page.toggle(key="batch-skip").set_value(True)
    page.run()
    assert "those lines are left out" in said(page)
    button(page, "Start 1 job").click()
    page.run()
    batch = client.batches.list().page().data[0]
    assert (batch.session_id, batch.counts.total, batch.invalid_lines) == (session, 1, 1)
    run_until(page, "its end", lambda: client.batches.get(batch.id).is_final)
    run_until(page, "the ZIP", lambda: [b for b in page.download_button if "ZIP" in b.label])


def test_a_csv_is_known_by_its_name(open_page: Open) -> None:
    page = open_page(name("csv"), tab="Batches")
    page.file_uploader(key="batch-file-0").upload("hats.csv", b"prompt,seed\na hat,7\n", "text/csv")
    page.run()
    assert "Every line is good: 1 line · 1 job" in said(page)


def test_a_table_with_columns_of_its_own(open_page: Open) -> None:
    page = open_page(name("table"), tab="Batches")
    table = b"sku,name,colour\nH-1,hat,red\n"
    page.file_uploader(key="batch-file-0").upload("products.csv", table, "text/csv")
    page.run()
    assert "nothing can start as it is" in said(page)
    page.text_input(key="batch-template").set_value("a {colour} {name}")
    page.text_input(key="batch-columns").set_value("sku=custom_id, sku=metadata.sku")
    page.run()
    assert "Every line is good: 1 line · 1 job" in said(page)


def test_a_service_that_is_away_is_told_and_the_page_stands(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_URL", f"http://127.0.0.1:{free_port()}")
    page = open_page(name("away"))
    assert "Darkroom does not answer" in said(page)
    assert "make run" in said(page)

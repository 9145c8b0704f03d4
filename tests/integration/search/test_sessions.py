"""Sessions: listed, looked at, and their history by time and by meaning."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import ARRAY, Engine, Uuid, cast, func, insert, literal, select, text
from sqlalchemy.orm import Session, sessionmaker

from shared.core.ids import decode_id, new_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.images.models import Session as SessionRow
from shared.jobs.models import Job
from tests.integration.search.conftest import Team
from tests.jobs import job_columns


@pytest.fixture(scope="module")
def team(make_team: Callable[[], Team]) -> Team:
    """Seven images in three sessions."""
    made = make_team()
    for number, name in enumerate(("oldest", "middle", "newest", "middle", "oldest", "oldest")):
        made.add(f"boat number {number}", meaning=False, session_id=name, seed=number)
    made.add("an elephant", session_id="middle", seed=6)
    return made


def pages(team: Team, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """All entries of a list, two on a page unless `limit` says otherwise."""
    entries: list[dict[str, Any]] = []
    after = None
    asked = {"limit": 2, **parameters}
    while True:
        answer = team.http.get(path, params=asked | ({"after": after} if after else {}))
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["data"]) == asked["limit"] or not page["has_more"]
        entries += page["data"]
        after = page["next_cursor"]
        if not page["has_more"]:
            return entries


def test_sessions_are_listed_by_last_use(team: Team) -> None:
    listed = pages(team, "/v1/sessions")
    assert [one["id"] for one in listed] == ["middle", "oldest", "newest"]
    assert [(one["images"], one["jobs"]) for one in listed] == [(3, 3), (3, 3), (1, 1)]
    used = [one["last_used_at"] for one in listed]
    assert used == sorted(used, reverse=True)
    assert team.http.get(listed[1]["links"]["self"]).json() == listed[1]


@pytest.mark.parametrize("of_batch", [0, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands_of_sessions_are_listed_by_their_newest_jobs(
    of_batch: int, make_team: Callable[[], Team], database: sessionmaker[Session]
) -> None:
    """The newest jobs tell which sessions come first, unless one batch has them all."""
    team = make_team()
    team.add("a boat", session_id="bulk")
    names = [f"session {number}" for number in range(1_200)]
    of_jobs = [*names, *names[300:600]]
    with database.begin() as session:
        rows = [{"tenant_id": team.tenant_id, "id": name} for name in names]
        session.execute(insert(SessionRow), rows)
        ended = {"state": "canceled", "finished_at": datetime.now(UTC)}
        jobs = [job_columns(team.tenant_id, session_id=name, **ended) for name in of_jobs]
        session.execute(insert(Job), jobs)
        # In the database: to send thousands takes a quarter of a minute.
        same = [each for each in Job.__table__.c if each.name not in ("id", "session_id")]
        ids = func.unnest(cast([new_id() for _ in range(of_batch)], ARRAY(Uuid)))
        copies = select(ids, literal("bulk"), *same).where(Job.id == jobs[0]["id"])
        columns = ["id", "session_id", *(each.name for each in same)]
        session.execute(insert(Job).from_select(columns, copies))
    listed = [one["id"] for one in pages(team, "/v1/sessions", limit=150)]
    expected = [*names[599:299:-1], *names[:599:-1], *names[299::-1]]
    assert listed == (["bulk", *expected] if of_batch else [*expected, "bulk"])


def test_history_is_newest_first(team: Team) -> None:
    history = pages(team, "/v1/sessions/oldest/images")
    assert [image["seed"] for image in history] == [5, 4, 0]
    assert {image["score"] for image in history} == {None}
    assert {image["session_id"] for image in history} == {"oldest"}


def test_what_was_only_made_again_is_listed_nowhere(make_team: Callable[[], Team]) -> None:
    team = make_team()
    first = team.add("a boat", session_id="checked", starred=True)
    again: dict[str, Any] = {
        "reproduces": decode_id("img", first),
        "metadata": {"reproduces": first},
    }
    second = team.add("a boat", session_id="checked", starred=True, **again)

    def listed() -> list[list[str]]:
        hits = [
            [hit["image"]["id"] for hit in team.http.get("/v1/search", params=asked).json()["data"]]
            for asked in ({"q": "a boat"}, {"q": "a boat", "session_id": "checked"}, {"starred": 1})
        ]
        histories = [
            [image["id"] for image in pages(team, "/v1/sessions/checked/images", **asked)]
            for asked in ({}, {"q": "a boat"})
        ]
        return hits + histories

    assert listed() == [[first]] * 5
    shown = team.http.get("/v1/sessions/checked").json()
    assert (shown["images"], shown["jobs"]) == (1, 2)
    recommended = team.http.get("/v1/prompts/recommendations", params={"q": "a b"}).json()
    assert [each["image"]["id"] for each in recommended["data"] if each["image"]] == [first]
    # It is all there is, once the original is gone.
    assert team.http.delete(f"/v1/images/{first}").is_success
    assert listed() == [[second]] * 5
    assert team.http.get("/v1/sessions/checked").json()["images"] == 1


def test_history_by_meaning_shows_the_session_alone(team: Team) -> None:
    history = pages(team, "/v1/sessions/middle/images", q="a large grey animal with a trunk")
    assert len(history) == 3
    assert history[0]["prompt"] == "an elephant"
    scores = [image["score"] for image in history]
    assert scores == sorted(scores, reverse=True)


def test_an_unknown_session_is_404(team: Team, make_team: Callable[[], Team]) -> None:
    stranger = make_team()
    for path in ("/v1/sessions/none", "/v1/sessions/none/images", "/v1/sessions/a%00b"):
        assert team.http.get(path).status_code == 404
    assert stranger.http.get("/v1/sessions/middle").status_code == 404
    assert stranger.http.get("/v1/sessions/middle/images", params={"q": "a"}).status_code == 404
    assert stranger.http.get("/v1/sessions").json()["data"] == []


def test_a_cursor_goes_with_its_list_alone(team: Team, make_team: Callable[[], Team]) -> None:
    sessions = team.http.get("/v1/sessions", params={"limit": 1}).json()["next_cursor"]
    images = team.http.get("/v1/sessions/oldest/images", params={"limit": 1}).json()["next_cursor"]
    stranger = make_team()
    attempts = [
        (team, "/v1/sessions", images),
        (team, "/v1/sessions", "x" * 3000),
        (stranger, "/v1/sessions", sessions),
        (team, "/v1/sessions/oldest/images", sessions),
        (team, "/v1/sessions/middle/images", images),
    ]
    for who, path, cursor in attempts:
        assert who.http.get(path, params={"after": cursor}).status_code == 422
    refused = team.http.get("/v1/sessions/oldest/images", params={"after": images, "q": "a boat"})
    assert refused.json()["code"] == "malformed_cursor"


def test_a_session_that_rests_is_found_without_going_through_what_came_after(
    engine: Engine, team: Team, database: sessionmaker[Session]
) -> None:
    """With a plain equality Postgres chooses the primary key for so big a share of all images."""
    with database() as session:  # rolled back
        copied = [column.name for column in Image.__table__.columns if column.computed is None]
        names = ", ".join(f'"{name}"' for name in copied)
        number = "'01a00000-0000-7000-8000-' || lpad(number::text, 12, '0')"
        new = {"id": f"({number})::uuid", "index": "number"}
        values = ", ".join(new.get(name, f'"{name}"') for name in copied)
        for seed, first, last in ((0, 1, 1_000), (2, 1_001, 10_000)):
            rows = (
                f"SELECT {values} FROM images, generate_series({first}, {last}) number"  # noqa: S608
                f" WHERE tenant_id = '{team.tenant_id}' AND seed = {seed}"
            )
            session.execute(text(f"INSERT INTO images ({names}) {rows}".replace("::", r"\:\:")))
        session.execute(text("ANALYZE images"))
        listed = image_queries.list_images(team.tenant_id, "oldest", 11, None)
        compiled = listed.compile(engine, compile_kwargs={"literal_binds": True})
        plan = "\n".join(session.scalars(text(f"EXPLAIN {compiled}".replace(":", r"\:"))))
    assert "using ix_images_session" in plan
    assert plan.count("Filter: ") == plan.count("Filter: (reproduces IS NULL)") == 1

"""Recommendations: shipped ones at first, then the tenant's own, and why."""

from typing import Any

import pytest
from sqlalchemy import select

from shared.images import models as image_models
from tests.integration.search.conftest import Team


def recommended(team: Team, **parameters: Any) -> list[dict[str, Any]]:
    """The recommendations."""
    answer = team.http.get("/v1/prompts/recommendations", params=parameters)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def own(team: Team, **parameters: Any) -> list[str]:
    """The prompts that are the tenant's."""
    return [one["prompt"] for one in recommended(team, **parameters) if not one["starter"]]


def test_an_empty_system_gets_starters_marked_as_such(team: Team) -> None:
    data = recommended(team, limit=5)
    assert len(data) == 5
    assert all(one["starter"] and one["image"] is None and one["reason"] for one in data)
    purple = recommended(team, q="purple hi", limit=3)
    assert purple[0]["prompt"].startswith("purple hills")


def test_the_first_prompt_is_recommended_before_starters(team: Team) -> None:
    image = team.add("a red boat on a river")
    first, *rest = recommended(team, q="boats on the water", limit=4)
    assert (first["prompt"], first["starter"]) == ("a red boat on a river", False)
    assert first["image"]["id"] == image
    assert "close to what you typed" in first["reason"]
    assert all(one["starter"] for one in rest)


def test_a_half_typed_prompt_is_completed(team: Team) -> None:
    team.add("Snowy mountains at sunset")
    team.add("snowy hills, a cabin")
    team.add("a photograph of a cat")
    first, *_ = recommended(team, q="snowy mo")
    assert first["prompt"] == "Snowy mountains at sunset"
    assert first["reason"].startswith("completes what you typed")
    assert own(team, q="snowy mo")[1] == "snowy hills, a cabin"
    assert "snowy hills, a cabin" not in own(team, q="snowy hills, a cabin")


def test_a_shipped_prompt_that_completes_goes_before_a_neighbour(team: Team) -> None:
    team.add("a purple mountain")
    data = recommended(team, q="purple hi", limit=4)
    assert data[0]["starter"]
    assert data[0]["prompt"].startswith("purple hills")
    assert "a purple mountain" in [one["prompt"] for one in data]
    scores = [one["score"] for one in data]
    assert scores == sorted(scores, reverse=True)


def test_the_newest_come_first_among_equals(team: Team) -> None:
    for number in range(12):
        team.add(f"{'zyxwvutsrqpo'[number]}, a letter", meaning=False, seed=number)
    assert own(team, limit=3) == ["o, a letter", "p, a letter", "q, a letter"]


def test_stars_and_reused_seeds_lift_and_are_named(team: Team) -> None:
    team.add("a calm lake at dawn", seed=1)
    team.add("a calm lake at noon", seed=2)
    team.add("a calm lake at dusk", seed=3, starred=True)
    first, *_ = recommended(team, q="calm lake")
    assert first["prompt"] == "a calm lake at dusk"
    assert "starred once" in first["reason"]
    team.add("a calm lake at noon", seed=1, session_id="other")
    team.add("a calm lake at dusk", seed=3)
    reasons = {one["prompt"]: one["reason"] for one in recommended(team, q="calm lake")}
    assert "its seed was used again" in reasons["a calm lake at dawn"]
    # Not of the prompt that took the seed, nor of one that was made once more.
    assert "seed" not in reasons["a calm lake at noon"]
    assert "seed" not in reasons["a calm lake at dusk"]


def test_deleting_an_image_sinks_its_prompt(team: Team) -> None:
    doomed = [team.add("a calm lake, pines", seed=number) for number in range(4)]
    team.add("a calm lake, birches", seed=9)
    assert set(own(team, q="calm lake")) == {"a calm lake, pines", "a calm lake, birches"}
    for image in doomed[:3]:
        assert team.http.delete(f"/v1/images/{image}").status_code == 200
    assert own(team, q="calm lake") == ["a calm lake, birches", "a calm lake, pines"]
    with team.database() as session:
        statement = select(image_models.Prompt.deleted_images).where(
            image_models.Prompt.tenant_id == team.tenant_id,
            image_models.Prompt.text == "a calm lake, pines",
        )
        assert session.scalars(statement).one() == 3


def test_what_the_session_has_used_is_skipped(team: Team) -> None:
    team.add("a red house", session_id="mine")
    team.add("a red barn", session_id="theirs")
    assert own(team, q="red building", session_id="mine") == ["a red barn"]
    assert set(own(team, q="red building", session_id="new")) == {"a red house", "a red barn"}


@pytest.mark.long
def test_many_used_prompts_leave_room_for_others(team: Team) -> None:
    """More are nearest, and more complete the text, than are looked at."""
    for number in range(70):
        team.add(f"a red house {number:02}", meaning=False, session_id="mine")
    team.add("a red house on stilts", meaning=False, session_id="theirs")
    first, *_ = recommended(team, q="a red house", session_id="mine")
    assert first["prompt"] == "a red house on stilts"
    for number in range(70):
        team.add(f"a wooden boat, number {number:02}", session_id="mine")
    team.add("a sailing boat on the sea", session_id="theirs")
    assert "a sailing boat on the sea" in own(team, q="a wooden boat", session_id="mine")


def test_starters_that_are_known_are_not_said_again(team: Team) -> None:
    known, typed, other = (one["prompt"] for one in recommended(team, limit=3))
    team.add(known, session_id="mine")
    starters = [one["prompt"] for one in recommended(team, session_id="mine", limit=50)]
    assert known not in starters
    assert other in starters
    assert typed not in [one["prompt"] for one in recommended(team, q=typed.upper(), limit=50)]
    shown = [one["prompt"] for one in recommended(team, q=known[:-3], limit=50)]
    assert shown.count(known) == 1


def test_without_words_they_follow_the_session(team: Team) -> None:
    team.add("a sailing ship at sea", session_id="mine")
    team.add("a wooden boat in a harbour", session_id="theirs")
    team.add("a bowl of fruit", session_id="theirs")
    first, *_ = recommended(team, session_id="mine")
    assert first["prompt"] == "a wooden boat in a harbour"
    assert first["reason"].startswith("close to what this session made last")


def test_tenants_recommend_nothing_to_each_other(landscapes: Team, team: Team) -> None:
    assert own(team, q="snowy mountains") == []
    assert own(landscapes, q="snowy mountains")


def test_hostile_text_is_only_text(team: Team) -> None:
    team.add("a red house")
    for q in ("%_\\", "'; DROP TABLE prompts; --", "雪", "a" * 4000, "\U0010ffff"):
        assert recommended(team, q=q)
    assert recommended(team, q="  ") == recommended(team)
    for q in ("a\0", "a" * 10_000):
        refused = team.http.get("/v1/prompts/recommendations", params={"q": q})
        assert refused.status_code == 422

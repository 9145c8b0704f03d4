"""Recommendations: which prompts, in which order, and why."""

from typing import Any

from api.search.recommendations import STARTERS, Candidate, choose_starters, rank, reason
from shared.core.ids import new_id


def candidate(text: str, **facts: Any) -> Candidate:
    known = {"images": 1, "starred": 0, "reused": 0, "deleted": 0, "similarity": 0.6, **facts}
    return Candidate(prompt_id=new_id(), text=text, **known)


def test_nearer_goes_first() -> None:
    ranked = rank([candidate("far", similarity=0.2), candidate("near", similarity=0.8)], None, 5)
    assert [one.text for one in ranked] == ["near", "far"]


def test_stars_and_reused_seeds_lift_and_deletions_sink() -> None:
    ranked = rank(
        [
            candidate("deleted", deleted=3),
            candidate("plain"),
            candidate("reused", reused=1),
            candidate("starred", starred=1),
        ],
        None,
        5,
    )
    assert [one.text for one in ranked] == ["starred", "reused", "plain", "deleted"]


def test_a_completion_goes_before_a_neighbour() -> None:
    ranked = rank(
        [candidate("neighbour", similarity=0.7), candidate("completion", completes=True)], None, 5
    )
    assert ranked[0].text == "completion"


def test_prompts_of_the_same_words_are_one() -> None:
    ranked = rank(
        [candidate("a lake, mountains"), candidate("Mountains, a lake!"), candidate("a river")],
        "A RIVER",
        5,
    )
    assert [one.text for one in ranked] == ["Mountains, a lake!"]


def test_scores_stay_within_bounds() -> None:
    assert candidate("x", similarity=1.0, starred=9).score <= 1
    assert candidate("x", similarity=-1.0, deleted=9).score >= 0


def test_the_reason_says_what_counted() -> None:
    starred = candidate("x", starred=2, reused=1, deleted=1)
    said = reason(starred, "what you typed")
    assert said == (
        "close to what you typed; starred 2 times; its seed was used again; deleted once"
    )
    assert reason(candidate("x", completes=True), "what you typed") == "completes what you typed"
    assert reason(candidate("x", similarity=None), None) == "one of yours"


def test_starters_that_begin_as_typed_come_first() -> None:
    (first, score), *_ = choose_starters(STARTERS, "Purple hills", 3)
    assert first.startswith("purple hills")
    assert 0 < score <= 1
    assert len(choose_starters(STARTERS, None, 4)) == 4
    assert choose_starters(STARTERS, "x", 0) == []


def test_starters_leave_out_what_is_known_already() -> None:
    starters = ["a lake at dawn", "a lake at dusk", "a lake at noon"]
    known = choose_starters(starters, "A lake at DAWN!", 5, without=["Dusk, at a lake"])
    assert [starter for starter, _ in known] == ["a lake at noon"]


def test_what_has_nothing_to_do_with_the_words_is_not_recommended() -> None:
    ranked = rank([candidate("far", similarity=0.1), candidate("unknown", similarity=None)], "x", 5)
    assert ranked == []
    assert reason(candidate("far", similarity=0.1), "what this session made last") == "one of yours"

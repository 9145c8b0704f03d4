"""Recommendations: which prompts, in which order, and why."""

from typing import Any

import pytest

from api.search.recommendations import STARTERS, Candidate, choose_starters, rank, reason
from shared.core.ids import new_id
from shared.search.terms import MAX_WORDS, RARE_UP_TO, Lexical, idf_weights, tsquery_of


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


# --- Words of a query: rarer ones weigh more, absent ones weigh without matching ---


def test_a_rarer_word_weighs_more() -> None:
    lexical = idf_weights({"the": 900, "lake": 100, "kraken": 1}, 1000)
    assert [word.text for word in lexical.words] == ["kraken", "lake", "the"]
    weights = [word.weight for word in lexical.words]
    assert weights == sorted(weights, reverse=True)
    assert [word.rare for word in lexical.words] == [True, False, False]


def test_words_that_nobody_used_take_weight_and_never_match() -> None:
    known = idf_weights({"lake": 10}, 100)
    lexical = idf_weights({"lake": 10, "unheard": 0}, 100)
    assert [word.text for word in lexical.words] == ["lake"]
    assert sum(share for _, share in known.shares()) == 1
    assert sum(share for _, share in lexical.shares()) < 0.5


def test_nothing_is_rare_among_a_few_prompts() -> None:
    assert not idf_weights({"kraken": 1}, 49).rare
    assert idf_weights({"kraken": 1}, 50).rare


def test_what_is_rare_grows_with_the_prompts() -> None:
    assert not idf_weights({"word": 3}, 1000).rare
    assert idf_weights({"word": 200}, 100_000).rare
    assert not idf_weights({"word": 201}, 100_000).rare


def test_a_count_that_stopped_at_its_bound_is_not_rare() -> None:
    assert idf_weights({"word": RARE_UP_TO}, 5_000_000).rare
    assert not idf_weights({"word": RARE_UP_TO + 1}, 5_000_000).rare


def test_a_word_of_every_prompt_still_weighs_something() -> None:
    (word,) = idf_weights({"a": 100}, 100).words
    assert word.weight >= 1


def test_a_count_by_sample_may_exceed_the_prompts() -> None:
    assert idf_weights({"a": 120}, 100).words[0].weight >= 1


def test_a_long_query_keeps_its_heaviest_words() -> None:
    counts = {f"w{number:02}": number + 1 for number in range(40)}
    lexical = idf_weights(counts, 1000)
    assert [word.text for word in lexical.words] == [f"w{number:02}" for number in range(MAX_WORDS)]


def test_a_long_prompt_holds_all_of_itself() -> None:
    known = idf_weights({f"w{number:02}": number + 1 for number in range(40)}, 1000)
    assert sum(share for _, share in known.shares()) == pytest.approx(1)


def test_no_words_no_weights() -> None:
    assert idf_weights({}, 10) == Lexical()
    assert idf_weights({"x": 0}, 0) == Lexical()


def test_a_word_is_quoted_whatever_it_holds() -> None:
    assert tsquery_of("it's") == "'it''s'"
    assert tsquery_of("a\\b & c") == "'a\\\\b & c'"

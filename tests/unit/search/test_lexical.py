"""Words of a query: rarer ones weigh more, absent ones weigh without matching."""

import pytest

from shared.search.terms import MAX_WORDS, RARE_UP_TO, Lexical, tsquery_of, weigh


def test_a_rarer_word_weighs_more() -> None:
    lexical = weigh({"the": 900, "lake": 100, "kraken": 1}, 1000)
    assert [word.text for word in lexical.words] == ["kraken", "lake", "the"]
    weights = [word.weight for word in lexical.words]
    assert weights == sorted(weights, reverse=True)
    assert [word.rare for word in lexical.words] == [True, False, False]


def test_words_that_nobody_used_take_weight_and_never_match() -> None:
    known = weigh({"lake": 10}, 100)
    lexical = weigh({"lake": 10, "unheard": 0}, 100)
    assert [word.text for word in lexical.words] == ["lake"]
    assert sum(share for _, share in known.shares()) == 1
    assert sum(share for _, share in lexical.shares()) < 0.5


def test_nothing_is_rare_among_a_few_prompts() -> None:
    assert not weigh({"kraken": 1}, 49).rare
    assert weigh({"kraken": 1}, 50).rare


def test_what_is_rare_grows_with_the_prompts() -> None:
    assert not weigh({"word": 3}, 1000).rare
    assert weigh({"word": 200}, 100_000).rare
    assert not weigh({"word": 201}, 100_000).rare


def test_a_count_that_stopped_at_its_bound_is_not_rare() -> None:
    assert weigh({"word": RARE_UP_TO}, 5_000_000).rare
    assert not weigh({"word": RARE_UP_TO + 1}, 5_000_000).rare


def test_a_word_of_every_prompt_still_weighs_something() -> None:
    (word,) = weigh({"a": 100}, 100).words
    assert word.weight >= 1


def test_a_count_by_sample_may_exceed_the_prompts() -> None:
    assert weigh({"a": 120}, 100).words[0].weight >= 1


def test_a_long_query_keeps_its_heaviest_words() -> None:
    counts = {f"w{number:02}": number + 1 for number in range(40)}
    lexical = weigh(counts, 1000)
    assert [word.text for word in lexical.words] == [f"w{number:02}" for number in range(MAX_WORDS)]


def test_a_long_prompt_holds_all_of_itself() -> None:
    known = weigh({f"w{number:02}": number + 1 for number in range(40)}, 1000)
    assert sum(share for _, share in known.shares()) == pytest.approx(1)


def test_no_words_no_weights() -> None:
    assert weigh({}, 10) == Lexical()
    assert weigh({"x": 0}, 0) == Lexical()


def test_a_word_is_quoted_whatever_it_holds() -> None:
    assert tsquery_of("it's") == "'it''s'"
    assert tsquery_of("a\\b & c") == "'a\\\\b & c'"

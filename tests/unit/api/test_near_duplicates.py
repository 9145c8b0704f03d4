"""Entries of a page of search results that say nearly the same."""

from dataclasses import dataclass

from api.search.service import by_kind


@dataclass
class Entry:
    prompt: str


def prompts(*texts: str) -> list[list[str]]:
    return [[each.prompt for each in kind] for kind in by_kind([*map(Entry, texts)], 0.8)]


def test_prompts_that_share_most_words_are_of_a_kind() -> None:
    fox = "a red fox in deep snow at noon by a river"
    assert prompts(fox, "a lake", f"{fox} again", "A LAKE") == [
        [fox, f"{fox} again"],
        ["a lake", "A LAKE"],
    ]


def test_a_prompt_without_words_is_its_own_kind() -> None:
    assert prompts("!", "?", "!", "a lake") == [["!", "!"], ["?"], ["a lake"]]

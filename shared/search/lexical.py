"""How much each word of a query counts: the rarer, the more.

Words that no prompt holds count, too: where most of a query is such, its other words say little.

Weights are those of BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009):
``idf = ln(1 + (n - df + 0.5) / (df + 0.5))`` with ``n`` prompts of which ``df`` hold the word.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_WORDS = 8
"""The weightiest words of a query; what comes after them hardly changes an order."""
MAX_WORD_CHARACTERS = 512
RARE_UP_TO = 2_000
"""Prompts that rare words may add to the candidates. Words are counted no further: what more
prompts hold is not rare, however many there are."""
_RARE_SHARE = 0.002
_RARE_COUNT = 2
_JUDGED_FROM = 50
"""Prompts from which on it means something that a word is rare."""
_SCALE = 255


@dataclass(frozen=True)
class Word:
    """One word of a query. `weight` is 1 … 255 and relative to the others."""

    text: str
    weight: int
    rare: bool


@dataclass(frozen=True)
class Lexical:
    """The words of a query that count, heaviest first; the same on every page of a search."""

    words: tuple[Word, ...] = ()
    whole: int = 0
    """The weight of `words` and of those that nobody used."""

    @property
    def rare(self) -> tuple[Word, ...]:
        """The words that alone say what is meant."""
        return tuple(word for word in self.words if word.rare)

    def shares(self) -> list[tuple[Word, float]]:
        """Each word with its share of the whole weight; they sum to 1 at most."""
        return [(word, word.weight / self.whole) for word in self.words]


def weigh(counts: Mapping[str, int], prompts: int) -> Lexical:
    """Weigh words by how many of `prompts` hold each, and choose among those that some hold."""
    held = {word: min(count, prompts) for word, count in counts.items()}
    idf = {
        word: math.log1p((prompts - count + 0.5) / (count + 0.5)) for word, count in held.items()
    }
    found = [word for word in idf if held[word] and len(word) <= MAX_WORD_CHARACTERS]
    if not found:
        return Lexical()
    heaviest = max(idf.values())
    weights = {word: max(1, round(_SCALE * share / heaviest)) for word, share in idf.items()}
    chosen = sorted(found, key=lambda word: (-idf[word], word))[:MAX_WORDS]
    unheard = (weight for word, weight in weights.items() if not held[word])
    return Lexical(
        tuple(Word(word, weights[word], _is_rare(held[word], prompts)) for word in chosen),
        sum(weights[word] for word in chosen) + sum(unheard),
    )


def _is_rare(count: int, prompts: int) -> bool:
    if prompts < _JUDGED_FROM:
        return False
    return count <= min(max(_RARE_COUNT, _RARE_SHARE * prompts), RARE_UP_TO)


def all_of(words: Iterable[Word]) -> str:
    """A tsquery for every one of the words."""
    return " & ".join(tsquery_of(word.text) for word in words)


def any_of(words: Iterable[Word]) -> str:
    """A tsquery for any of the words."""
    return " | ".join(tsquery_of(word.text) for word in words)


def tsquery_of(word: str) -> str:
    """A word as a tsquery that means just this word, whatever characters it has."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"

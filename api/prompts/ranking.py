"""Which prompts to recommend, in which order, and why: pure rules over what the ledger knows."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

_SIMILARITY = 0.75
_APPEAL = 0.25
_COMPLETED = 0.85
"""What a prompt that completes the typed text is taken to have of similarity, at least."""
_NEAR = 0.25
"""Similarity below which sentences have nothing to do with each other: most pairs have less."""
_STARTER_COMPLETES = 0.6
"""What a shipped prompt scores that completes the typed text: a little less than one's own."""
_STARTER = 0.25
"""What a shipped prompt scores at most that does not complete the typed text."""
_NEUTRAL = 0.5
"""The similarity of prompts when there is nothing to compare with."""
_DOUBT = 2
"""Pictures without a fate that are added to every prompt: one star of one picture is little."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """A prompt of the tenant, and what became of its pictures."""

    prompt_id: UUID
    text: str
    images: int
    starred: int
    reused: int
    deleted: int
    similarity: float | None = None
    completes: bool = False

    @property
    def is_near(self) -> bool:
        """Whether it has to do with what it was compared with."""
        return self.completes or (self.similarity or 0.0) >= _NEAR

    @property
    def appeal(self) -> float:
        """What people did with its pictures, -1 … 1: a star counts twice."""
        good = 2 * self.starred + self.reused - self.deleted
        return max(-1.0, min(1.0, good / (self.images + self.deleted + _DOUBT)))

    @property
    def score(self) -> float:
        """0 … 1."""
        similarity = _NEUTRAL if self.similarity is None else self.similarity
        if self.completes:
            similarity = max(similarity, _COMPLETED)
        score = _SIMILARITY * max(0.0, similarity) + _APPEAL * self.appeal
        return round(max(0.0, min(1.0, score)), 6)


def rank(candidates: Iterable[Candidate], typed: str | None, limit: int) -> list[Candidate]:
    """The best, the newer first of equals.

    Distinct in their words, without what was typed itself or is far from it.
    """
    seen = {words_of(typed)} if typed is not None else set()
    ranked: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.score, one.prompt_id), reverse=True):
        if typed is not None and not candidate.is_near:
            continue
        words = words_of(candidate.text)
        if words in seen:
            continue
        seen.add(words)
        ranked.append(candidate)
        if len(ranked) == limit:
            break
    return ranked


def reason(candidate: Candidate, near_what: str | None) -> str:
    """Why a prompt is recommended, in a phrase."""
    if candidate.completes:
        parts = ["completes what you typed"]
    elif candidate.is_near and near_what is not None:
        parts = [f"close to {near_what}"]
    else:
        parts = ["one of yours"]
    if candidate.starred:
        parts.append(f"starred {_times(candidate.starred)}")
    if candidate.reused:
        parts.append("its seed was used again")
    if candidate.deleted:
        parts.append(f"deleted {_times(candidate.deleted)}")
    return "; ".join(parts)


def choose_starters(
    starters: Sequence[str], typed: str | None, limit: int, *, without: Iterable[str] = ()
) -> list[tuple[str, float]]:
    """(prompt, score) of the starters that fit best: those that begin so, then by common words.

    Left out are what was typed and the prompts `without`, whatever the order of their words.
    """
    known = {words_of(text) for text in without} | {words_of(typed or "")}
    starters = [starter for starter in starters if words_of(starter) not in known]
    if typed is None:
        return [(starter, _STARTER) for starter in starters[:limit]]
    wanted = set(words_of(typed))
    scored = []
    for place, starter in enumerate(starters):
        begins = starter.lower().startswith(typed.lower())
        shared = len(wanted & set(words_of(starter))) / max(1, len(wanted))
        scored.append((-max(_STARTER_COMPLETES * begins, _STARTER * shared), place, starter))
    return [(starter, round(-score, 6)) for score, _, starter in sorted(scored)[:limit]]


def words_of(text: str) -> tuple[str, ...]:
    """What makes two prompts the same to a reader: their words, whatever the order."""
    return tuple(sorted(set(_WORD.findall(text.casefold()))))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"

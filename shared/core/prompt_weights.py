"""Weights in prompts, in the grammar of AUTOMATIC1111's web UI.

`(word)` weighs 1.1 times as much, `[word]` 1.1 times as little, `(word:1.3)` 1.3 times; they nest
and multiply. `BREAK` begins another chunk of tokens. A backslash before a bracket or a backslash
makes it that character. Unlike there, a bracket that is never closed is an error. Prompt editing
(`[a:b:0.5]`), alternation (`[a|b]`) and `AND` are not part of it.
"""

import re
from typing import Literal

from shared.core.errors import InvalidInput

PromptSyntax = Literal["plain", "weighted"]

GRAMMAR = "a1111-1"
"""Receipts name it; another reading of the same prompt gets another number."""
MOST = 10.0
"""The largest weight there may be, and with a minus the least."""
MOST_NESTED = 32
_CLOSING = {")": ("(", 1.1), "]": ("[", 1 / 1.1)}

Piece = tuple[str, float]
"""A text and its weight."""

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[)\]]|:\s*([+-]?[.\d]+)\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


class MalformedWeights(InvalidInput):
    """A weighted prompt does not follow the grammar; `reason` is a stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse_weights(prompt: str) -> list[list[Piece]]:
    """The pieces of a weighted prompt, in one list for each part between `BREAK`s.

    Raises:
        MalformedWeights: a bracket is not closed or nested too deep, or a weight is no number or
            out of range.
    """
    reader = _Reader()
    for match in _TOKEN.finditer(prompt):
        reader.take(match[0], match[1])
    return _parts(reader.end())


def without_marks(prompt: str) -> str:
    """The text of a weighted prompt.

    Raises:
        MalformedWeights: as `parse_weights`.
    """
    return "".join(text for part in parse_weights(prompt) for text, _ in part)


class _Reader:
    def __init__(self) -> None:
        self._pieces: list[Piece | None] = []
        """None is a `BREAK`."""
        self._opened: dict[str, list[int]] = {"(": [], "[": []}
        """Where the brackets that are open begin."""

    def take(self, mark: str, weight: str | None) -> None:
        """The next bracket, escape or text; `weight` is of a bracket that it closes."""
        if mark in self._opened:
            self._opened[mark].append(len(self._pieces))
            if sum(map(len, self._opened.values())) > MOST_NESTED:
                message = f"Brackets may be nested {MOST_NESTED} deep."
                raise MalformedWeights("weights_too_deep", message)
        elif weight is not None and self._opened["("]:
            self._close("(", _number(weight))
        elif mark in _CLOSING and self._opened[_CLOSING[mark][0]]:
            self._close(*_CLOSING[mark])
        elif mark[0] == "\\":
            self._pieces.append((mark[1:], 1.0))
        else:
            for index, text in enumerate(_BREAK.split(mark)):
                self._pieces += [None, (text, 1.0)] if index else [(text, 1.0)]

    def _close(self, bracket: str, weight: float) -> None:
        start = self._opened[bracket].pop()
        self._pieces[start:] = [
            piece and (piece[0], piece[1] * weight) for piece in self._pieces[start:]
        ]

    def end(self) -> list[Piece | None]:
        """What came of it."""
        for bracket, starts in self._opened.items():
            if starts:
                message = (
                    f"A {bracket} is never closed; write \\{bracket} for the character itself."
                )
                raise MalformedWeights("unclosed_weight", message)
        # Put so that it also refuses nan, which infinity times zero is.
        if not all(piece is None or abs(piece[1]) <= MOST for piece in self._pieces):
            raise MalformedWeights("weight_out_of_range", f"Weights go from {-MOST:g} to {MOST:g}.")
        return self._pieces


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        message = f"The weight {text[:20]} is not a number."
        raise MalformedWeights("malformed_weight", message) from None


def _parts(pieces: list[Piece | None]) -> list[list[Piece]]:
    """Neighbours of one weight are one text, whose tokens may span what was written apart."""
    parts: list[list[Piece]] = [[]]
    for piece in pieces:
        if piece is None:
            parts.append([])
        elif parts[-1] and parts[-1][-1][1] == piece[1]:
            parts[-1][-1] = (parts[-1][-1][0] + piece[0], piece[1])
        elif piece[0]:
            parts[-1].append(piece)
    return parts

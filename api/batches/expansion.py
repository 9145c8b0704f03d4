"""One line into several jobs: matrix, zip, and alternatives in a prompt such as `a {red|blue} hat`.

Counts and lengths come before copies: what would be too many or too long is refused without being
made, and what is made is made one by one. What all lines of a batch may cost together is bounded,
too: a file of a few hundred bytes, gzipped, can hold a hundred thousand lines that cost seconds
each, and are refused in the end.
"""

import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from api.batches.file_formats import MAX_LINE_BYTES, MAX_LINES
from api.batches.report import FileRefused, LineRefused
from api.jobs.options import OPTIONS
from shared.images.models import MAX_PROMPT

_TEMPLATE_FIELDS = ("prompt", "negative_prompt")
_EXPANDABLE = frozenset(
    {
        *("prompt", "negative_prompt", "num_images", "seed", "seeds", "width", "height", "steps"),
        *("guidance_scale", "scheduler", "model", "init_image", "strength", "resize_mode"),
        *("true_cfg_scale", "loras", "mask_image", *OPTIONS),
        *("output_format", "session_id", "metadata"),
    }
)
_MAX_DEPTH = 8
_MAX_TEXT = 4 * MAX_PROMPT
"""Characters of an expanded text: composing them (NFC) leaves a quarter of them at least."""
_MAX_TEMPLATE = MAX_LINE_BYTES
"""Characters of a template."""
_MAX_TOKENS = 2_000_000
"""Braces, bars and texts between them, in all templates of a batch; reading them takes seconds."""
_MAX_TRIED = 4 * MAX_LINES
"""Jobs of all lines that are counted or made; half of that is enough for a batch without errors."""
_MANY = 10**9
"""Counts end here: without an end they can have thousands of digits."""


@dataclass(frozen=True)
class Expansion:
    """The jobs' fields that a line stands for."""

    count: int
    jobs: Iterator[dict[str, Any]]
    """Made as they are asked for."""


class Expander:
    """Expands the lines of one batch."""

    def __init__(self, *, templates: bool, room: int = MAX_LINES) -> None:
        """`room`: how many jobs may still come; whoever accepts a line's jobs subtracts them."""
        self.room = room
        self._templates = TemplateReader() if templates else None
        self._tries_left = _MAX_TRIED

    def expand(self, fields: dict[str, Any]) -> Expansion:
        """The jobs of a line, in order; most often the line itself.

        `zip` goes outermost, then `matrix` with its last list varying fastest, then the
        alternatives of each text.

        Raises:
            LineRefused: a list is malformed, or there would be more jobs than there is room for, or
                longer texts than a prompt may have.
            FileRefused: the lines of the batch take too much work.
        """
        matrix, zipped = fields.get("matrix"), fields.get("zip")
        has_templates = self._templates is not None and _has_templates(fields)
        if matrix is None and zipped is None and not has_templates:
            return Expansion(1, self._tried([fields]))
        combinations = _Combinations(fields)
        count = combinations.count
        self._check_room(count)
        reader = self._templates
        if reader is None:
            return Expansion(count, self._tried(combinations))
        if combinations.may_have_templates:
            count = 0
            for job in self._tried(combinations):
                count += math.prod(_count(text) for _, text in reader.read_fields(job))
                self._check_room(count)
        return Expansion(count, self._tried(_with_alternatives(combinations, reader)))

    def _check_room(self, count: int) -> None:
        if count > self.room:
            shown = str(count) if count < _MANY else f"{_MANY} or more"
            message = (
                f"This line expands to {shown} jobs; the batch has room for {max(self.room, 0)}."
            )
            raise LineRefused.because("too_many_jobs", message)

    def _tried(self, jobs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for job in jobs:
            self._tries_left -= 1
            if self._tries_left < 0:
                message = (
                    f"The lines expand to more than {_MAX_TRIED} jobs, counting rejected ones."
                )
                raise FileRefused("too_many_jobs", message)
            yield job


class _Combinations:
    """What `zip` and `matrix` make of a line."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._base = {name: v for name, v in fields.items() if name not in ("matrix", "zip")}
        self._zipped = _lists(fields.get("zip"), "zip")
        self._product = _lists(fields.get("matrix"), "matrix")
        lengths = {len(values) for values in self._zipped.values()} or {1}
        if len(lengths) > 1:
            raise LineRefused.because(
                "zip_lengths", "The lists of zip must have the same length.", "/zip"
            )
        rows = lengths.pop()
        self.count = min(_MANY, rows * math.prod(map(len, self._product.values())))
        varied = self._zipped | self._product
        self.may_have_templates = _has_templates(self._base) or not varied.keys().isdisjoint(
            _TEMPLATE_FIELDS
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows: Iterable[tuple[Any, ...]] = (
            zip(*self._zipped.values(), strict=True) if self._zipped else ((),)
        )
        for row in rows:
            start = self._base | dict(zip(self._zipped, row, strict=True))
            for values in itertools.product(*self._product.values()):
                yield start | dict(zip(self._product, values, strict=True))


def _lists(value: Any, name: str) -> dict[str, list[Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise LineRefused.because("dict_type", f"{name} must be an object of lists.", f"/{name}")
    for field, values in value.items():
        pointer = f"/{name}/{str(field)[:64]}"
        if field not in _EXPANDABLE:
            raise LineRefused.because("not_expandable", "This field cannot be varied.", pointer)
        if not isinstance(values, list) or not values:
            raise LineRefused.because("list_type", "Give a list with at least one value.", pointer)
    return value


# --- Alternatives in texts ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Choice:
    """`{a|b}`: one of several sequences."""

    alternatives: "tuple[_Sequence, ...]"
    count: int
    longest: int


_Sequence = tuple["str | _Choice", ...]


class TemplateReader:
    """Reads the templates of one batch. Those read last are remembered: lines often share them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Sequence] = OrderedDict()
        self._held = 0
        self._left = _MAX_TOKENS

    def read_fields(self, job: dict[str, Any]) -> list[tuple[str, _Sequence]]:
        """(field, what its template stands for) of each field that may be one.

        Raises:
            LineRefused: as `read`.
            FileRefused: as `read`.
        """
        return [
            (name, self.read(job[name], name)) for name in _TEMPLATE_FIELDS if _is_one(job, name)
        ]

    def read(self, text: str, field: str) -> _Sequence:
        """Braces without a `|` and escaped ones are text.

        Raises:
            LineRefused: it is nested deeper than 8, or stands for a text that is too long.
            FileRefused: all templates together are too long.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        if len(text) > _MAX_TEMPLATE:
            message = f"A text with alternatives may have {_MAX_TEMPLATE} characters at most."
            raise LineRefused.because("too_long", message, f"/{field}")
        tokens = _TOKEN.findall(text)
        self._left -= len(tokens)
        if self._left < 0:
            message = f"The texts with alternatives have more than {_MAX_TOKENS} parts."
            raise FileRefused("too_large", message)
        try:
            sequence = _Parser(tokens).parse()
        except _TooDeep:
            message = f"Alternatives may be nested {_MAX_DEPTH} deep."
            raise LineRefused.because("template_too_deep", message, f"/{field}") from None
        if _longest(sequence) > _MAX_TEXT:
            message = f"At most {MAX_PROMPT} characters are allowed."
            raise LineRefused.because("too_long", message, f"/{field}")
        self._remember(text, sequence)
        return sequence

    def _remember(self, text: str, sequence: _Sequence) -> None:
        self._known[text] = sequence
        self._held += len(text)
        while self._held > _MAX_TEMPLATE:
            oldest, _ = self._known.popitem(last=False)
            self._held -= len(oldest)


def alternatives(sequence: _Sequence, at: int = 0) -> Iterator[str]:
    """Every text that it stands for, from its part `at` on; the last part varies fastest."""
    if at == len(sequence):
        yield ""
        return
    part = sequence[at]
    heads: Iterable[str] = (
        (part,)
        if isinstance(part, str)
        else (text for option in part.alternatives for text in alternatives(option))
    )
    for head in heads:
        for tail in alternatives(sequence, at + 1):
            yield head + tail


def _has_templates(fields: dict[str, Any]) -> bool:
    return any(_is_one(fields, name) for name in _TEMPLATE_FIELDS)


def _is_one(fields: dict[str, Any], name: str) -> bool:
    text = fields.get(name)
    return isinstance(text, str) and "{" in text


def _with_alternatives(
    jobs: Iterable[dict[str, Any]], reader: TemplateReader
) -> Iterator[dict[str, Any]]:
    for job in jobs:
        yield from _vary(job, reader.read_fields(job))


def _vary(job: dict[str, Any], texts: list[tuple[str, _Sequence]]) -> Iterator[dict[str, Any]]:
    if not texts:
        yield job
        return
    (name, sequence), *others = texts
    for text in alternatives(sequence):
        yield from _vary(job | {name: text}, others)


def _count(sequence: _Sequence) -> int:
    count = 1
    for part in sequence:
        if isinstance(part, _Choice):
            count = min(_MANY, count * part.count)
    return count


def _longest(sequence: _Sequence) -> int:
    return sum(len(part) if isinstance(part, str) else part.longest for part in sequence)


_TOKEN = re.compile(r"\\[{|}]|[{|}]|\\|[^\\{|}]+")


class _TooDeep(Exception):
    """Alternatives are nested too deep."""


class _Parser:
    r"""Reads a template; `\{`, `\|` and `\}` stand for the characters themselves."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    def parse(self) -> _Sequence:
        """What the template stands for.

        Raises:
            _TooDeep: braces are nested too deep.
        """
        parts: list[str | _Choice] = []
        at = 0
        while at < len(self._tokens):
            sequence, at = self._sequence(at, 0)
            # What stopped it is a closing brace too many: text like any other.
            parts += [*sequence, *self._tokens[at : at + 1]]
            at += 1
        return _joined(parts)

    def _sequence(self, at: int, depth: int) -> tuple[_Sequence, int]:
        parts: list[str | _Choice] = []
        while at < len(self._tokens):
            piece = self._tokens[at]
            if piece == "{":
                choice, at = self._choice(at, depth + 1)
                parts.extend(choice)
            elif piece == "}" or (depth and piece == "|"):
                break
            else:
                is_escaped = len(piece) == 2 and piece[0] == "\\"
                parts.append(piece[1] if is_escaped else piece)
                at += 1
        return _joined(parts), at

    def _choice(self, at: int, depth: int) -> tuple[_Sequence, int]:
        """From an opening brace on; what turns out to be no choice comes back as text."""
        if depth > _MAX_DEPTH:
            raise _TooDeep
        options: list[_Sequence] = []
        while True:
            option, at = self._sequence(at + 1, depth)
            options.append(option)
            if at >= len(self._tokens) or self._tokens[at] == "}":
                break
        is_closed = at < len(self._tokens)
        if is_closed and len(options) > 1:
            count = min(_MANY, sum(map(_count, options)))
            return (_Choice(tuple(options), count, max(map(_longest, options))),), at + 1
        literal: list[str | _Choice] = ["{"]
        for number, option in enumerate(options):
            literal += ["|", *option] if number else option
        return _joined([*literal, "}"] if is_closed else literal), at + is_closed


def _joined(parts: "list[str | _Choice]") -> _Sequence:
    """Neighbouring characters as one text."""
    joined: list[str | _Choice] = []
    for is_text, group in itertools.groupby(parts, key=lambda part: isinstance(part, str)):
        if is_text:
            joined.append("".join(part for part in group if isinstance(part, str)))
        else:
            joined.extend(group)
    return tuple(joined)

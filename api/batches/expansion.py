"""One line into several jobs: matrix, zip, and alternatives in a prompt such as `a {red|blue} hat`.

Counts come before copies: what would be too many is refused without being made.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.batches.errors import LineRefused

_TEMPLATE_FIELDS = ("prompt", "negative_prompt")
_EXPANDABLE = frozenset(
    {
        *("prompt", "negative_prompt", "num_images", "seed", "seeds", "width", "height", "steps"),
        *("guidance_scale", "scheduler", "model", "init_image", "strength", "output_format"),
        *("session_id", "metadata"),
    }
)
_MAX_DEPTH = 8


def expand(fields: dict[str, Any], *, templates: bool, room: int) -> list[dict[str, Any]]:
    """The jobs' fields that a line stands for, in order; most often the line itself.

    `zip` goes outermost, then `matrix` with its last list varying fastest, then the alternatives
    of each text.

    Raises:
        LineRefused: a list is malformed, or there would be more than `room` jobs.
    """
    matrix, zipped = fields.get("matrix"), fields.get("zip")
    has_templates = templates and any(_may_be_template(fields.get(n)) for n in _TEMPLATE_FIELDS)
    if matrix is None and zipped is None and not has_templates:
        return [fields]
    base = {name: value for name, value in fields.items() if name not in ("matrix", "zip")}
    rows = _zip_rows(zipped)
    product = _lists(matrix, "matrix")
    _check_room(len(rows) * math.prod(len(values) for values in product.values()), room)
    combined = [
        base | row | dict(zip(product, values, strict=True))
        for row in rows
        for values in itertools.product(*product.values())
    ]
    if not templates:
        return combined
    found: list[dict[str, Any]] = []
    for job in combined:
        found.extend(_with_alternatives(job, room - len(found)))
    return found


def _zip_rows(zipped: Any) -> list[dict[str, Any]]:
    lists = _lists(zipped, "zip")
    if not lists:
        return [{}]
    if len({len(values) for values in lists.values()}) > 1:
        raise LineRefused.because(
            "zip_lengths", "The lists of zip must have the same length.", "/zip"
        )
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _lists(value: Any, name: str) -> dict[str, list[Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise LineRefused.because("dict_type", f"{name} is an object of lists.", f"/{name}")
    for field, values in value.items():
        pointer = f"/{name}/{str(field)[:64]}"
        if field not in _EXPANDABLE:
            raise LineRefused.because("not_expandable", "This field cannot be varied.", pointer)
        if not isinstance(values, list) or not values:
            raise LineRefused.because("list_type", "Give a list with at least one value.", pointer)
    return value


def _check_room(count: int, room: int) -> None:
    if count > room:
        message = f"The line makes {count} jobs, of which {max(room, 0)} have room in the batch."
        raise LineRefused.because("too_many_jobs", message)


# --- Alternatives in texts ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """`{a|b}`: one of several sequences."""

    alternatives: "tuple[_Sequence, ...]"

    def count(self) -> int:
        return sum(_count(sequence) for sequence in self.alternatives)


_Sequence = tuple["str | _Choice", ...]


def alternatives(text: str, room: int) -> list[str]:
    """Every text that a template stands for. Braces without a `|` and escaped ones are text.

    Raises:
        LineRefused: there are more than `room`, or the nesting is deeper than 8.
    """
    sequence = _parse(text)
    if all(isinstance(part, str) for part in sequence):
        return ["".join(part for part in sequence if isinstance(part, str))]
    _check_room(_count(sequence), room)
    return list(_texts(sequence))


def _may_be_template(value: Any) -> bool:
    return isinstance(value, str) and "{" in value


def _with_alternatives(job: dict[str, Any], room: int) -> list[dict[str, Any]]:
    found = [job]
    for name in _TEMPLATE_FIELDS:
        if _may_be_template(job.get(name)):
            texts = alternatives(job[name], room)
            _check_room(len(texts) * len(found), room)
            found = [one | {name: text} for one in found for text in texts]
    _check_room(len(found), room)
    return found


def _count(sequence: _Sequence) -> int:
    return math.prod(part.count() for part in sequence if isinstance(part, _Choice))


def _texts(sequence: _Sequence) -> Iterator[str]:
    options = [
        (part,) if isinstance(part, str) else [t for s in part.alternatives for t in _texts(s)]
        for part in sequence
    ]
    for chosen in itertools.product(*options):
        yield "".join(chosen)


def _parse(text: str) -> _Sequence:
    r"""Read the template; `\{`, `\|` and `\}` stand for the characters themselves."""
    parts: list[str | _Choice] = []
    at = 0
    while at < len(text):
        sequence, at = _parse_sequence(text, at, 0)
        # What stopped it is a closing brace too many: text like any other.
        parts += [*sequence, text[at : at + 1]]
        at += 1
    return _joined(parts)


def _parse_sequence(text: str, at: int, depth: int) -> tuple[_Sequence, int]:
    parts: list[str | _Choice] = []
    while at < len(text):
        character = text[at]
        if character == "\\" and text[at + 1 : at + 2] in ("{", "|", "}"):
            parts.append(text[at + 1])
            at += 2
        elif character == "{":
            choice, at = _parse_choice(text, at, depth + 1)
            parts.extend(choice)
        elif character == "}" or (character == "|" and depth):
            break
        else:
            parts.append(character)
            at += 1
    return _joined(parts), at


def _parse_choice(text: str, start: int, depth: int) -> tuple[_Sequence, int]:
    """From an opening brace on; what turns out to be no choice comes back as text."""
    if depth > _MAX_DEPTH:
        raise LineRefused.because(
            "template_too_deep", f"Alternatives may be nested {_MAX_DEPTH} deep.", "/prompt"
        )
    options: list[_Sequence] = []
    at = start
    while True:
        option, at = _parse_sequence(text, at + 1, depth)
        options.append(option)
        if at >= len(text) or text[at] == "}":
            break
    is_closed = at < len(text)
    if is_closed and len(options) > 1:
        return (_Choice(tuple(options)),), at + 1
    literal: list[str | _Choice] = ["{"]
    for number, option in enumerate(options):
        literal += ["|", *option] if number else option
    return _joined([*literal, "}"] if is_closed else literal), at + is_closed


def _joined(parts: "list[str | _Choice]") -> _Sequence:
    """Neighbouring characters as one text."""
    joined: list[str | _Choice] = []
    for part in parts:
        if joined and isinstance(part, str) and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)

"""From a table of one's own to the fields of jobs: a prompt template and a mapping of columns.

Values go into a template after its alternatives were chosen, so that none is read as one.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import from_json

from api.batches.report import LineRefused
from api.core.errors import did_you_mean, pointer
from api.jobs.options import OPTIONS
from shared.images.models import MAX_PROMPT

MAX_PLACEHOLDERS = 100
METADATA = "metadata."
"""Prefix of columns that are one key of the metadata."""

_INTEGERS = frozenset({"seed", "num_images", "width", "height", "steps"})
_NUMBERS = frozenset(
    {"guidance_scale", "true_cfg_scale", "strength", "start_within", "finish_within"}
)
_JSON = frozenset({"seeds", "metadata", "matrix", "zip", "previews", "loras"}) | OPTIONS
"""A cell that is no JSON is text, such as `weighted`."""
_BOOLEANS = {"TRUE": "true", "FALSE": "false"}
_TEXTS = frozenset(
    {
        *("custom_id", "prompt", "negative_prompt", "scheduler", "model", "session_id"),
        *("init_image", "mask_image", "resize_mode", "output_format"),
    }
)
FIELDS = _INTEGERS | _NUMBERS | _JSON | _TEXTS
"""What a column may be."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)

_PLACEHOLDER = re.compile(r"\\[{|}]|\{([^{|}\\]*)\}")
_ESCAPED = re.compile(r"\\([{|}])")
_MARK = re.compile(r"\0([0-9]{1,3})\0")
"""Where a value goes. No prompt may have a NUL, so that nobody else writes one."""
_MAX_TEXT = 4 * MAX_PROMPT
"""Characters of a filled template: composing them (NFC) leaves a quarter of them at least."""
_SHOWN = 40
_MOST_SAMPLED = 256
_SHOWN_CHARACTERS = 80
_MOST_LISTS = 1000
"""Faults of a batch that list the columns there are; each JSON line may have others."""

Mapped = str | list[str] | None
"""The field that a column is, or several; None: it is no field, whatever its name."""


def placeholders(template: str) -> list[str]:
    """The columns that a template names, each once, in their order."""
    fields = (match[1] for match in _PLACEHOLDER.finditer(template) if match[1] is not None)
    return list(dict.fromkeys(map(column_name, fields)))


def column_name(text: str) -> str:
    """A name as it is compared: without outer spaces, composed."""
    return unicodedata.normalize("NFC", text.strip())


def fields_of(mapped: Mapped) -> tuple[str, ...]:
    """The fields that a column is."""
    if mapped is None:
        return ()
    return (mapped,) if isinstance(mapped, str) else tuple(mapped)


def is_field(name: str) -> bool:
    """Whether a column may be this."""
    return name in FIELDS or (name.startswith(METADATA) and name != METADATA)


def no_such_field(name: str) -> str:
    """Says what was probably meant."""
    return f"There is no field named {name[:64]!r}.{did_you_mean(name, sorted(FIELDS))}"


def list_fields() -> str:
    """All that a column may be."""
    return ", ".join([*sorted(FIELDS), METADATA + "NAME"])


class Columns:
    """What the columns of a table, or the keys of JSON lines, are for a batch."""

    def __init__(
        self, template: str | None, mapping: Mapping[str, Mapped], *, alternatives: bool
    ) -> None:
        """`alternatives`: whether the template's `{a|b}` stands for several texts."""
        self._mapping = {column_name(name): fields_of(mapped) for name, mapped in mapping.items()}
        self._placeholders = placeholders(template or "")
        self._template = None if template is None else self._marked(template, alternatives)
        self._lists_left = _MOST_LISTS

    @property
    def known(self) -> frozenset[str]:
        """The names that mean something."""
        return FIELDS | self._mapping.keys() | set(self._placeholders)

    def _marked(self, template: str, alternatives: bool) -> str:
        number = {name: index for index, name in enumerate(self._placeholders)}

        def mark(match: re.Match[str]) -> str:
            return match[0] if match[1] is None else f"\0{number[column_name(match[1])]}\0"

        marked = _PLACEHOLDER.sub(mark, template)
        is_expanded = alternatives and "{" in marked
        return marked if is_expanded else _ESCAPED.sub(r"\1", marked)

    def find_fault(self, columns: Iterable[str]) -> tuple[str, str] | None:
        """(code, message) of what does not fit a table with these columns."""
        names = dict.fromkeys(columns)
        for wanted, code, what in (
            (self._placeholders, "unknown_placeholder", "The template names the column"),
            (self._mapping, "missing_column", "The mapping names the column"),
        ):
            for name in wanted:
                if name not in names:
                    there = self._instead(name, list(names))
                    return code, f"{what} {name[:64]!r}, which does not exist.{there}"
        if self._is_second_prompt(names):
            message = (
                "The template makes the prompts, but there is a column 'prompt', too. Name it in "
                "the template, or leave it out: map it to null."
            )
            return "duplicate_field", message
        taken: dict[str, str] = {}
        for name in names:
            for field in self.fields_of(name):
                other = taken.setdefault(field, name)
                if other != name:
                    message = f"The columns {other[:64]!r} and {name[:64]!r} are both {field[:80]}."
                    return "duplicate_field", f"{message} Map one to null to leave it out."
        return None

    def _instead(self, name: str, names: list[str]) -> str:
        self._lists_left -= 1
        if self._lists_left < 0:
            return ""
        shown = [other[:64] for other in names[:_SHOWN]]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{did_you_mean(name, shown)} The columns are: {', '.join(shown)}{more}."

    def _is_second_prompt(self, names: Iterable[str]) -> bool:
        is_used = "prompt" in self._mapping or "prompt" in self._placeholders
        return self._template is not None and "prompt" in names and not is_used

    def fields_of(self, name: str) -> tuple[str, ...]:
        """The fields that a column is."""
        if name in self._mapping:
            return self._mapping[name]
        if name == "prompt" and self._template is not None:
            return ()
        # JSON lines may also have what has no place in a cell.
        return (name,) if is_field(name) or name == "webhook" else ()

    def read_cells(self, cells: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """(a job's fields, values for its prompt) of a table's row.

        Raises:
            LineRefused: a value that the template needs is missing.
        """
        fields: dict[str, Any] = {}
        for name, cell in cells.items():
            for field in self.fields_of(name) if cell else ():
                put(fields, field, convert(field, cell))
        return self._with_prompt(fields, cells)

    def read_object(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The same of a JSON object.

        Raises:
            LineRefused: it lacks a key, or a value does not fit the template.
        """
        values = {column_name(name): value for name, value in values.items()}
        fault = self.find_fault(values)
        if fault is not None:
            raise LineRefused.because(*fault)
        fields: dict[str, Any] = {}
        for name, value in values.items():
            for field in self.fields_of(name) if value is not None else ():
                put(fields, field, _as_text(value) if field.startswith(METADATA) else value)
        return self._with_prompt(fields, values)

    def _with_prompt(
        self, fields: dict[str, Any], values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        if self._template is None:
            return fields, ()
        inserted: list[str] = []
        for name in self._placeholders:
            text = _as_text(values.get(name, ""))
            if not isinstance(text, str):
                message = f"A template accepts text and numbers; {name[:64]!r} is neither."
                raise LineRefused.because("string_type", message, pointer(name[:64]))
            if not text.strip():
                message = f"The template needs a value for {name[:64]!r}, which is empty here."
                raise LineRefused.because("empty_placeholder", message, pointer(name[:64]))
            inserted.append(text)
        fields["prompt"] = self._template
        return fields, tuple(inserted)


class Sample(Columns):
    """Takes any lines, and keeps what they name, each with its first value."""

    def __init__(self) -> None:
        super().__init__(None, {}, alternatives=False)
        self.found: dict[str, str | None] = {}

    def find_fault(self, columns: Iterable[str]) -> None:
        """None is at fault."""
        for name in columns:
            # Others are no names: bytes that are no UTF-8 are lone surrogates here.
            if len(self.found) < _MOST_SAMPLED and name and name.isprintable():
                self.found.setdefault(name, None)

    def read_object(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Nothing, of anything."""
        self.find_fault(values)
        for name, value in values.items():
            if self.found.get(name, "") is None and value not in (None, ""):
                text = value if isinstance(value, str) else json.dumps(value)
                self.found[name] = text[:_SHOWN_CHARACTERS]
        return {}, ()

    def read_cells(self, cells: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Nothing, of any."""
        return self.read_object(cells)


def fill(text: str, values: tuple[str, ...]) -> str:
    """Put the values where the template has marks.

    Raises:
        LineRefused: it would be too long for a prompt.
    """
    marks = [int(number) for number in _MARK.findall(text)]
    length = len(text) + sum(len(values[mark]) for mark in marks if mark < len(values))
    if length > _MAX_TEXT:
        message = f"At most {MAX_PROMPT} characters are allowed."
        raise LineRefused.because("too_long", message, "/prompt")
    return _MARK.sub(
        lambda match: values[int(match[1])] if int(match[1]) < len(values) else match[0], text
    )


def put(fields: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, or a key of the metadata in addition to those that are there."""
    if not field.startswith(METADATA):
        both = field == "metadata" and isinstance(value, dict)
        fields[field] = fields.get(field, {}) | value if both else value
        return
    metadata = fields.setdefault("metadata", {})
    if isinstance(metadata, dict):  # else the validation names it
        fields["metadata"] = metadata | {field.removeprefix(METADATA): value}


def convert(name: str, cell: str) -> Any:
    """The cell as the field's type; what cannot be converted is left for the validation to name."""
    try:
        if name == "loras" and not cell.lstrip().startswith("["):
            return [_scaled("name", text) for text in cell.split(",")]
        if name == "references" and not cell.lstrip().startswith("["):
            return [_scaled("image", text) for text in cell.split(",")]
        # Python's own int and float take more than numbers as JSON and spreadsheets write them.
        if name in _INTEGERS:
            return int(cell) if _INTEGER.fullmatch(cell.strip(" ")) else cell
        if name in _NUMBERS:
            return float(cell) if _NUMBER.fullmatch(cell.strip(" ")) else cell
        if name in _JSON:
            # Spreadsheets write TRUE and FALSE.
            return from_json(_BOOLEANS.get(cell, cell), allow_inf_nan=False)
    except ValueError:
        pass
    return cell


def _scaled(what: str, text: str) -> dict[str, Any]:
    """`name` or `name:0.8`: of a LoRA or a reference image."""
    name, has_scale, scale = text.strip().rpartition(":")
    if not has_scale:
        return {what: scale}
    return {what: name, "scale": convert("guidance_scale", scale)}


def _as_text(value: Any) -> Any:
    """Numbers and truth as they are written; None as nothing; others as they are."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, bool | int | float) else value

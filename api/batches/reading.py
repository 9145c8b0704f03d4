"""Bytes of a batch file to lines of fields: JSONL and CSV, gzipped or not, within bounds.

Everything is read line by line from a file on disk; the longest line bounds the memory.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, BinaryIO, Literal, Protocol

from pydantic_core import from_json

from api.batches.report import FileRefused, LineRefused

MAX_LINES = 50_000
MAX_BYTES = 100 * 1024 * 1024
"""Of the file as it is sent, and again of what a gzip file holds."""
MAX_RAW_LINES = 1_000_000
"""Of a file as it lies there: blank ones, and all that a CSV record with line breaks takes."""
MAX_LINE_BYTES = 256 * 1024
"""A prompt and a negative prompt of 4,000 characters, escaped, with metadata, take 160 kB."""

FileFormat = Literal["jsonl", "csv"]

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_INTEGERS = frozenset({"seed", "num_images", "width", "height", "steps"})
_NUMBERS = frozenset({"guidance_scale", "strength", "start_within", "finish_within"})
_JSON = frozenset({"seeds", "metadata", "matrix", "zip", "previews"})
_TEXTS = frozenset(
    {
        *("custom_id", "prompt", "negative_prompt", "scheduler", "model", "session_id"),
        *("init_image", "resize_mode", "output_format"),
    }
)
_LITTLE_UTF16, _BIG_UTF16 = [False, True, False, True], [True, False, True, False]
_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_COLUMNS = _INTEGERS | _NUMBERS | _JSON | _TEXTS
_METADATA = "metadata."
"""Prefix of CSV columns that are one key of the metadata."""


@dataclass(slots=True)
class Line:
    """One line as it was read: its fields, or why there are none."""

    number: int
    fields: dict[str, Any] | None
    refusal: LineRefused | None = None


class _Lines(Protocol):
    def readline(self, size: int, /) -> bytes: ...


def read_file(file: BinaryIO, form: FileFormat) -> Iterator[Line]:
    """The lines of a file, in order; blank ones are left out but counted in the numbers.

    Raises:
        FileRefused: while iterating, where the file cannot be read on.
    """
    file.seek(0)
    is_gzip = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    source: _Lines = _Gunzipped(file) if is_gzip else file
    return read_csv(source) if form == "csv" else read_jsonl(source)


def _check_encoding(start: bytes) -> None:
    """UTF-16 and UTF-32 show in the first characters: a mark, or the NULs of ASCII ones.

    Raises:
        FileRefused: the file has one of them.
    """
    nuls = [byte == 0 for byte in start]
    if start[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff") or nuls.count(True) == 3:
        encoding = "UTF-32"
    elif start[:2] in (b"\xff\xfe", b"\xfe\xff") or nuls in (_LITTLE_UTF16, _BIG_UTF16):
        encoding = "UTF-16"
    else:
        return
    raise FileRefused("unsupported_encoding", f"The file is {encoding}; save it as UTF-8.", 1)


def read_list(items: Iterable[Any]) -> Iterator[Line]:
    """The entries of a JSON body's list."""
    for number, item in enumerate(items, 1):
        yield _as_line(number, item)


def read_jsonl(source: _Lines) -> Iterator[Line]:
    """One JSON object in each line, or a string, which is a prompt."""
    for number, text in _split(source):
        if text is None:
            yield Line(number, None, _too_long())
        elif text.strip():
            yield _parse(number, text)


def _split(source: _Lines) -> Iterator[tuple[int, bytes | None]]:
    """(number, line with its end); None for a line that is too long, which is skipped unread.

    Raises:
        FileRefused: the encoding is another, or there are too many lines; a million blank ones take
            a kilobyte of gzip.
    """
    number = 0
    while text := source.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number > MAX_RAW_LINES:
            message = f"The file has more than {MAX_RAW_LINES} lines, blank ones included."
            raise FileRefused("too_many_lines", message, number)
        if number == 1:
            _check_encoding(text[:4])
            text = text.removeprefix(_BOM)
        if len(text) > MAX_LINE_BYTES and not text.endswith(b"\n"):
            while (rest := source.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, text


def _parse(number: int, text: bytes) -> Line:
    try:
        return _as_line(number, from_json(text, allow_inf_nan=False))
    except ValueError:
        return Line(number, None, _why_no_json(text))


def _as_line(number: int, value: Any) -> Line:
    if isinstance(value, dict):
        return Line(number, value)
    if isinstance(value, str):
        return Line(number, {"prompt": value})
    message = "A line is a JSON object of a job's fields, or a string, which is a prompt."
    return Line(number, None, LineRefused.because("not_an_object", message))


def _why_no_json(text: bytes) -> LineRefused:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return LineRefused.because("invalid_utf8", f"The line is not valid UTF-8{_likely(text)}.")
    return LineRefused.because("malformed_json", "The line is not valid JSON (RFC 8259).")


def _likely(text: bytes) -> str:
    """What bytes that are no UTF-8 may be."""
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    return "; it looks like Windows-1252, so save the file as UTF-8"


def _too_long() -> LineRefused:
    message = f"The line is longer than {MAX_LINE_BYTES} bytes."
    return LineRefused.because("line_too_long", message)


# --- CSV ---------------------------------------------------------------------------------------


def read_csv(source: _Lines) -> Iterator[Line]:
    """RFC 4180 with a header of field names; an empty cell is a field that is left out.

    `seeds`, `metadata`, `matrix`, `zip` and `previews` are JSON; `metadata.NAME` is one key.
    """
    reader = csv.reader(_decoded(source), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        columns = [name.strip() for name in header]
        _check_header(columns)
        start = reader.line_num + 1
        for cells in reader:
            if any(cells):
                yield _record(start, columns, cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise FileRefused(
            "malformed_csv", f"The CSV cannot be read: {error}.", reader.line_num
        ) from None


def _decoded(source: _Lines) -> Iterator[str]:
    for number, text in _split(source):
        if text is None:
            message = f"The line is longer than {MAX_LINE_BYTES} bytes."
            raise FileRefused("line_too_long", message, number)
        # Bytes that are no UTF-8 become lone surrogates, which `_record` finds in their own line.
        line = text.decode("utf-8", "surrogateescape")
        if number == 1:
            _check_delimiter(line)
        yield line


def _check_delimiter(header: str) -> None:
    for delimiter, plural in _DELIMITERS.items():
        parts = [part.strip(' "\r\n') for part in header.split(delimiter)]
        if len(parts) > 1 and "," not in header and not _COLUMNS.isdisjoint(parts):
            message = f"The columns are separated by {plural}; separate them by commas."
            raise FileRefused("wrong_delimiter", message, 1)


def _check_header(columns: list[str]) -> None:
    for name in columns:
        if name not in _COLUMNS and not name.startswith(_METADATA):
            near = get_close_matches(name[:64].lower().replace(" ", "_"), sorted(_COLUMNS), 1)
            guess = f" Did you mean {near[0]}?" if near else ""
            message = (
                f"There is no field named {name[:64]!r}.{guess} The first line names the columns, "
                f"which may be: {', '.join(sorted(_COLUMNS))}, metadata.NAME."
            )
            raise FileRefused("unknown_column", message.encode("ascii", "replace").decode(), 1)
    if len(set(columns)) < len(columns):
        raise FileRefused("duplicate_column", "Two columns have the same name.", 1)


def _record(number: int, columns: list[str], cells: list[str]) -> Line:
    if len(cells) > len(columns):
        message = f"The line has {len(cells)} cells, the header {len(columns)}."
        return Line(number, None, LineRefused.because("too_many_cells", message))
    fields: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=False):
        if not cell:
            continue
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            refusal = LineRefused.because(
                "invalid_utf8",
                f"The cell is not valid UTF-8{_likely(cell.encode('utf-8', 'surrogateescape'))}.",
                f"/{name}",
            )
            return Line(number, None, refusal)
        if name.startswith(_METADATA):
            fields.setdefault("metadata", {})[name.removeprefix(_METADATA)] = cell
        else:
            fields[name] = _convert(name, cell)
    return Line(number, fields)


def _convert(name: str, cell: str) -> Any:
    """The cell as the field's type; what cannot be converted is left for the validation to name."""
    try:
        # Python's own int and float take more than numbers as JSON and spreadsheets write them.
        if name in _INTEGERS:
            return int(cell) if _INTEGER.fullmatch(cell.strip(" ")) else cell
        if name in _NUMBERS:
            return float(cell) if _NUMBER.fullmatch(cell.strip(" ")) else cell
        if name in _JSON:
            return from_json(cell, allow_inf_nan=False)
    except ValueError:
        pass
    return cell


# --- gzip --------------------------------------------------------------------------------------


class _Gunzipped:
    """A gzip file's lines, of which no more than `MAX_BYTES` are ever unpacked."""

    def __init__(self, file: BinaryIO) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self._left = MAX_BYTES

    def readline(self, size: int, /) -> bytes:
        """As of a file.

        Raises:
            FileRefused: the gzip data are damaged, cut off or unpack to too much.
        """
        try:
            line = self._gzip.readline(size)
        except (OSError, EOFError, zlib.error):
            message = "The gzip data are damaged or cut off."
            raise FileRefused("malformed_gzip", message) from None
        self._left -= len(line)
        if self._left < 0:
            raise FileRefused("too_large", f"Unpacked, the file has more than {MAX_BYTES} bytes.")
        return line

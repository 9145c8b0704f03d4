"""Bytes of a batch file to lines of fields: JSONL and CSV, gzipped or not, within bounds.

Everything is read line by line from a file on disk; the longest line bounds the memory.
"""

import contextlib
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, BinaryIO, Literal, Protocol

from pydantic_core import from_json

from api.batches.columns import (
    FIELDS,
    METADATA,
    Columns,
    Sample,
    column_name,
    convert,
    list_fields,
    no_such_field,
    put,
)
from api.batches.report import FileRefused, LineRefused

MAX_LINES = 50_000
MAX_BYTES = 100 * 1024 * 1024
"""Of the file as it is sent, and again of what a gzip file holds."""
MAX_RAW_LINES = 1_000_000
"""Of a file as it lies there: blank ones, and all that a CSV record with line breaks takes."""
_SAMPLED_LINES = 20
MAX_LINE_BYTES = 256 * 1024
"""A prompt and a negative prompt of 4,000 characters, escaped, with metadata, take 160 kB."""
_TOO_LONG = f"The line is longer than {MAX_LINE_BYTES} bytes."

FileFormat = Literal["jsonl", "csv"]

_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_LITTLE_UTF16, _BIG_UTF16 = [False, True, False, True], [True, False, True, False]
_DELIMITERS = ";\t|"
"""What columns are separated by where not by commas; spreadsheets of many countries write `;`."""


@dataclass(slots=True)
class Line:
    """One line as it was read: its fields, or why there are none."""

    number: int
    fields: dict[str, Any] | None
    refusal: LineRefused | None = None
    values: tuple[str, ...] = ()
    """What goes into its prompt, if that is a template over columns."""


class _Lines(Protocol):
    def readline(self, size: int, /) -> bytes: ...


def read_file(file: BinaryIO, form: FileFormat, columns: Columns | None = None) -> Iterator[Line]:
    """The lines of a file, in order; blank ones are left out but counted in the numbers.

    Without `columns` each column or key is the field of its name.

    Raises:
        FileRefused: while iterating, where the file cannot be read on.
    """
    file.seek(0)
    is_gzip = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    source: _Lines = _Gunzipped(file) if is_gzip else file
    if form == "csv":
        return read_csv(source, columns)
    return _mapped(read_jsonl(source), columns)


def sample(file: BinaryIO, form: FileFormat) -> dict[str, str | None]:
    """What the first lines name, each with its first value; as far as the file can be read."""
    columns = Sample()
    with contextlib.suppress(FileRefused):
        for _ in islice(read_file(file, form, columns), _SAMPLED_LINES):
            pass
    file.seek(0)
    return columns.found


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


def read_list(items: Iterable[Any], columns: Columns | None = None) -> Iterator[Line]:
    """The entries of a JSON body's list."""
    return _mapped((_as_line(number, item) for number, item in enumerate(items, 1)), columns)


def _mapped(lines: Iterator[Line], columns: Columns | None) -> Iterator[Line]:
    if columns is None:
        yield from lines
        return
    for line in lines:
        if line.fields is not None:
            try:
                line.fields, line.values = columns.read_object(line.fields)
            except LineRefused as refusal:
                line.fields, line.refusal = None, refusal
        yield line


def read_jsonl(source: _Lines) -> Iterator[Line]:
    """One JSON object in each line, or a string, which is a prompt."""
    for number, text in _split(source):
        if text is None:
            yield Line(number, None, LineRefused.because("line_too_long", _TOO_LONG))
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
    message = "A line must be a JSON object of job fields, or a string (a prompt)."
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


# --- CSV ---------------------------------------------------------------------------------------


def read_csv(source: _Lines, mapping: Columns | None = None) -> Iterator[Line]:
    """RFC 4180 with a header of field names; an empty cell is a field that is left out.

    A header without commas may have semicolons, tabs or vertical bars in their place. `seeds`,
    `metadata`, `matrix`, `zip` and `previews` are JSON; `metadata.NAME` is one key.
    """
    lines = _decoded(source)
    first = next(lines, None)
    if first is None:
        return
    names = re.sub(r'"[^"]*"', "", first)
    delimiter = next((one for one in _DELIMITERS if one in names and "," not in names), ",")
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        columns = [column_name(name) for name in header]
        _check_header(columns, mapping)
        start = reader.line_num + 1
        for cells in reader:
            if any(cells):
                yield _record(start, columns, cells, mapping)
            start = reader.line_num + 1
    except csv.Error as error:
        raise FileRefused(
            "malformed_csv", f"The CSV cannot be read: {error}.", reader.line_num
        ) from None


def _decoded(source: _Lines) -> Iterator[str]:
    for number, text in _split(source):
        if text is None:
            raise FileRefused("line_too_long", _TOO_LONG, number)
        # Bytes that are no UTF-8 become lone surrogates, which `_record` finds in their own line.
        yield text.decode("utf-8", "surrogateescape")


def _check_header(columns: list[str], mapping: Columns | None) -> None:
    if mapping is None:
        fault = None
        known = set(columns)
        for name in columns:
            if name not in FIELDS and not name.startswith(METADATA):
                message = (
                    f"{no_such_field(name)} The first line names the columns, which may be: "
                    f"{list_fields()}. A table with columns of its own needs `template` or "
                    "`columns`."
                )
                fault = ("unknown_column", message)
                break
    else:
        fault = mapping.find_fault(columns)
        known = {name for name in columns if name in mapping.known or name.startswith(METADATA)}
    if fault is not None:
        code, message = fault
        # Bytes that are no UTF-8 are lone surrogates here.
        raise FileRefused(code, message.encode("utf-8", "replace").decode(), 1)
    if sum(name in known for name in columns) > len(known):
        raise FileRefused("duplicate_column", "Two columns have the same name.", 1)


def _record(number: int, columns: list[str], cells: list[str], mapping: Columns | None) -> Line:
    if len(cells) > len(columns):
        message = f"The line has {len(cells)} cells, the header {len(columns)}."
        return Line(number, None, LineRefused.because("too_many_cells", message))
    named = {name: cell for name, cell in zip(columns, cells, strict=False) if cell}
    for name, cell in named.items():
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError:
            refusal = LineRefused.because(
                "invalid_utf8",
                f"The cell is not valid UTF-8{_likely(cell.encode('utf-8', 'surrogateescape'))}.",
                f"/{name}".encode("utf-8", "replace").decode(),
            )
            return Line(number, None, refusal)
    if mapping is not None:
        try:
            fields, values = mapping.read_cells(named)
        except LineRefused as refused:
            return Line(number, None, refused)
        return Line(number, fields, None, values)
    fields = {}
    for name, cell in named.items():
        put(fields, name, convert(name, cell))
    return Line(number, fields)


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

"""Bytes to lines: every kind of damage has a line number and a name."""

import gzip
import io
import tempfile
import tracemalloc
from collections import deque
from typing import Any, BinaryIO, cast

import pytest

from api.batches.file_formats import (
    MAX_BYTES,
    MAX_LINE_BYTES,
    MAX_RAW_LINES,
    FileFormat,
    read_file,
    read_list,
)
from api.batches.report import FileRefused

Read = tuple[int, dict[str, Any] | str | None]


def read(content: bytes, form: FileFormat = "jsonl") -> list[Read]:
    """(line number, fields or the refusal's code) of each line."""
    return [
        (line.number, line.refusal.errors[0].code if line.refusal else line.fields)
        for line in read_file(io.BytesIO(content), form)
    ]


def refusal(content: bytes, form: FileFormat = "jsonl") -> tuple[str, int | None]:
    with pytest.raises(FileRefused) as refused:
        read(content, form)
    return refused.value.code, refused.value.line


def test_jsonl_objects_strings_and_blank_lines() -> None:
    assert read(b'{"prompt": "a"}\n\n"b"\n{"prompt": "c"}') == [
        (1, {"prompt": "a"}),
        (3, {"prompt": "b"}),
        (4, {"prompt": "c"}),
    ]


def test_a_byte_order_mark_and_crlf_are_no_part_of_the_lines() -> None:
    assert read(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n') == [
        (1, {"prompt": "a"}),
        (2, {"prompt": "b"}),
    ]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", "malformed_json"),
        (b'{"prompt": "a"', "malformed_json"),
        (b'{"prompt": NaN}', "malformed_json"),
        (b'{"prompt": "\\ud800"}', "malformed_json"),
        (b"[" * 5000, "malformed_json"),
        (b'{"prompt": "\xff\xfe"}', "invalid_utf8"),
        ("{}".encode("utf-16"), "invalid_utf8"),
        (b"7", "not_an_object"),
        (b"null", "not_an_object"),
        (b'["a"]', "not_an_object"),
    ],
)
def test_a_bad_line_spoils_no_other(line: bytes, code: str) -> None:
    assert read(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}\n') == [
        (1, {"prompt": "a"}),
        (2, code),
        (3, {"prompt": "b"}),
    ]


def test_a_line_of_10_mb_is_skipped_without_being_held() -> None:
    content = b'"a"\n"' + b"x" * 10_000_000 + b'"\n"b"\n'
    tracemalloc.start()
    found = read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, {"prompt": "a"}), (2, "line_too_long"), (3, {"prompt": "b"})]
    assert peak < 8 * MAX_LINE_BYTES


def test_the_entries_of_a_list() -> None:
    lines = list(read_list([{"prompt": "a"}, "b", 3]))
    assert [line.fields for line in lines] == [{"prompt": "a"}, {"prompt": "b"}, None]


def test_gzip_is_recognised_by_its_content() -> None:
    assert read(gzip.compress(b'"a"\n"b"\n')) == [(1, {"prompt": "a"}), (2, {"prompt": "b"})]


def test_gzip_can_be_read_from_a_file_that_was_written_before() -> None:
    with tempfile.SpooledTemporaryFile(10) as spool:
        spool.write(gzip.compress(b'"a"\n'))
        [line] = read_file(cast("BinaryIO", spool), "jsonl")
    assert line.fields == {"prompt": "a"}


def test_a_gzip_bomb_is_unpacked_no_further_than_the_limit() -> None:
    line = b'"' + b"x" * 1000 + b'"\n'
    bomb = gzip.compress(line * (MAX_BYTES // len(line) + 1000), 1)
    lines = read_file(io.BytesIO(bomb), "jsonl")
    with pytest.raises(FileRefused) as refused:
        deque(lines, maxlen=0)
    assert refused.value.code == "too_large"


def test_a_gzip_bomb_without_line_ends_takes_no_memory() -> None:
    bomb = gzip.compress(bytes(50_000_000), 1)
    tracemalloc.start()
    found = read(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(1, "line_too_long")]
    assert peak < 8 * MAX_LINE_BYTES


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_blank_lines_without_end_are_refused(form: FileFormat) -> None:
    """98 kB of gzip took a thread 68 seconds."""
    bomb = gzip.compress(b"prompt\n" + b"\n" * MAX_RAW_LINES, 1)
    assert refusal(bomb, form) == ("too_many_lines", MAX_RAW_LINES + 1)
    assert len(read(b"prompt\n" + b"\n" * 1000 + b"a\n", "csv")) == 1


@pytest.mark.parametrize("damage", [slice(None, -6), slice(None, 15)])
def test_a_gzip_file_that_was_cut_off_is_refused(damage: slice) -> None:
    assert refusal(gzip.compress(b'"a"\n' * 100)[damage])[0] == "malformed_gzip"


def test_csv_with_quotes_newlines_numbers_and_json() -> None:
    content = (
        b"custom_id,prompt,steps,guidance_scale,seeds,metadata.team,previews\r\n"
        b'a,"a ""red"" hat,\nand a scarf",20,7.5,"[1, 2]",red,\r\n'
        b"b,two dogs,,,,,true\r\n"
        b"\r\n"
        b"c,x,many,,,,\r\n"
    )
    assert read(content, "csv") == [
        (
            2,
            {
                "custom_id": "a",
                "prompt": 'a "red" hat,\nand a scarf',
                "steps": 20,
                "guidance_scale": 7.5,
                "seeds": [1, 2],
                "metadata": {"team": "red"},
            },
        ),
        (4, {"custom_id": "b", "prompt": "two dogs", "previews": True}),
        (6, {"custom_id": "c", "prompt": "x", "steps": "many"}),
    ]


@pytest.mark.parametrize("cell", ["1_000", "٧", "７", "0x10", "7.0", "1e3", "nan", "1__0"])
def test_csv_numbers_are_decimal_digits(cell: str) -> None:
    content = f"prompt,seed,guidance_scale\na,{cell},1_0.5\nb, 7 ,+1.5e1\nc,-7,.nan\n".encode()
    assert read(content, "csv") == [
        (2, {"prompt": "a", "seed": cell, "guidance_scale": "1_0.5"}),
        (3, {"prompt": "b", "seed": 7, "guidance_scale": 15.0}),
        (4, {"prompt": "c", "seed": -7, "guidance_scale": ".nan"}),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_another_encoding_is_named(encoding: str, form: FileFormat, pack: Any) -> None:
    text = "prompt\na\n" if form == "csv" else '{"prompt": "a"}\n'
    with pytest.raises(FileRefused, match=encoding[:6].upper()) as refused:
        read(pack(text.encode(encoding)), form)
    assert refused.value.code == "unsupported_encoding"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_windows_1252_is_named(form: FileFormat) -> None:
    text = "prompt\ncafé\n" if form == "csv" else '{"prompt": "café"}\n'
    (line,) = read_file(io.BytesIO(text.encode("cp1252")), form)
    assert line.refusal is not None
    assert line.refusal.errors[0].code == "invalid_utf8"
    assert "Windows-1252" in line.refusal.errors[0].message


@pytest.mark.parametrize(
    "content",
    [
        b"prompt;seed\na, b;7\n",
        b'"prompt";"seed"\n"a, b";"7"\n',
        b"prompt\tseed\na, b\t7\n",
        b"prompt|seed\na, b|7\n",
        b'prompt;"metadata.width, cm";seed\na, b;;7\n',
    ],
)
def test_the_header_shows_another_delimiter(content: bytes) -> None:
    assert read(content, "csv") == [(2, {"prompt": "a, b", "seed": 7})]


def test_csv_lines_can_be_bad_one_by_one() -> None:
    assert read(b"prompt,steps\na,1,2\nb\xff,1\nc,1\n", "csv") == [
        (2, "too_many_cells"),
        (3, "invalid_utf8"),
        (4, {"prompt": "c", "steps": 1}),
    ]


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b"prompt,colour\na,red\n", "unknown_column", 1),
        (b"prompt,prompt\na,b\n", "duplicate_column", 1),
        (b'prompt\na\n"b\n', "malformed_csv", 3),
        (b"prompt\n" + b"x" * (MAX_LINE_BYTES + 2), "line_too_long", 2),
    ],
)
def test_csv_that_cannot_be_read_on_is_refused(content: bytes, code: str, line: int) -> None:
    assert refusal(content, "csv") == (code, line)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_nothing_has_no_lines(content: bytes) -> None:
    assert read(content) == []


def test_an_unknown_column_is_told_which_there_are() -> None:
    with pytest.raises(FileRefused) as refused:
        list(read_file(io.BytesIO(b"Promt,seed\na hat,1\n"), "csv"))
    assert "Did you mean prompt?" in refused.value.message
    assert "guidance_scale" in refused.value.message

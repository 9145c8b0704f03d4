"""A batch's folder: every image once, whatever interrupts, and names that cannot collide."""

import gzip
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from darkroom.cli.batch_folder import RESULTS, STATE, BatchFolder, FolderState, fingerprint
from darkroom.cli.batch_source import STDIN, submittable
from darkroom.cli.failures import CliError, ExitCode
from darkroom.decoding import decode
from darkroom.types.batches import BatchResult


def result(custom_id: str, line: int = 1, *, seeds: tuple[int, ...] = (7,)) -> BatchResult:
    images: list[dict[str, Any]] = [
        {
            "id": f"img_{custom_id}{place}".replace("/", "-").rjust(12, "0"),
            "seed": seed,
            "width": 8,
            "height": 8,
            "content_type": "image/png",
            "bytes": 3,
            "sha256": hashlib.sha256(b"abc").hexdigest(),
            "url": "https://example.com",
        }
        for place, seed in enumerate(seeds)
    ]
    return decode(
        BatchResult,
        {
            "custom_id": custom_id,
            "line": line,
            "job_id": f"job_{custom_id}",
            "state": "succeeded",
            "seeds": list(seeds),
            "images": images,
            "error": None,
            "finished_at": "2026-11-22T10:00:00Z",
        },
    )


def take(folder: BatchFolder, given: BatchResult) -> list[str]:
    paths = folder.names(given)
    for path in paths.values():
        path.write_bytes(b"abc")
    folder.record(given, paths)
    return [path.name for path in paths.values()]


def test_names_are_those_of_the_archive(tmp_path: Path) -> None:
    assert take(BatchFolder(tmp_path), result("hat-1")) == ["hat-1_7.png"]


@pytest.mark.parametrize("given", [["A", "a"], ["a/b", "a_b"], ["../x", "x"], ["…", "?"]])
def test_different_lines_have_different_files(tmp_path: Path, given: list[str]) -> None:
    folder = BatchFolder(tmp_path)
    names = [take(folder, result(custom_id, line))[0] for line, custom_id in enumerate(given)]
    assert len({name.lower() for name in names}) == len(given)
    assert all((tmp_path / name).parent == tmp_path for name in names)


def test_a_seed_that_a_line_has_twice_makes_two_files(tmp_path: Path) -> None:
    assert len(set(take(BatchFolder(tmp_path), result("twin", seeds=(7, 7))))) == 2


def test_what_was_recorded_is_known_to_the_next_run(tmp_path: Path) -> None:
    given = result("hat-1")
    names = take(BatchFolder(tmp_path), given)
    again = BatchFolder(tmp_path)
    assert again.has(given)
    assert again.images == 1
    assert [path.name for path in again.names(given).values()] == names
    (tmp_path / names[0]).unlink()
    assert not again.has(given)


def test_a_job_that_ends_again_has_its_images_counted_once(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    take(folder, result("hat-1", seeds=(7, 8)))
    take(folder, result("hat-1", seeds=(7, 8)))
    take(folder, result("hat-2", 2))
    assert folder.images == BatchFolder(tmp_path).images == 3


def test_a_line_that_a_crash_cut_off_is_forgotten(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    take(folder, result("one", 1))
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"custom_id": "tw')
    again = BatchFolder(tmp_path)
    take(again, result("two", 2))
    assert BatchFolder(tmp_path).images == 2


def test_in_the_end_the_record_is_in_the_order_of_the_lines(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    for line in (3, 1, 2):
        take(folder, result(f"line-{line}", line))
    take(folder, result("line-1", 1))
    folder.finish()
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3]


def test_the_state_survives_and_keeps_its_key(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('"a hat"\n')
    mark = fingerprint(source, {"priority": 3})
    state = FolderState.new(tmp_path, source, mark, "http://server")
    assert FolderState.read(tmp_path) == state
    after = state.with_batch("batch_1")
    assert FolderState.read(tmp_path) == after
    assert after.idempotency_key == state.idempotency_key
    assert mark != fingerprint(source, {"priority": 4})
    after.remove()
    assert FolderState.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}'])
def test_a_state_that_cannot_be_read_is_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(CliError) as caught:
        FolderState.read(tmp_path)
    assert caught.value.exit_code is ExitCode.USAGE
    assert (tmp_path / STATE).read_text() == text


@pytest.mark.parametrize("damaged", ["not json", "[]", "3", '{"job_id": "job_1", "line": 1}'])
def test_a_damaged_record_is_told_of_by_its_line(tmp_path: Path, damaged: str) -> None:
    take(BatchFolder(tmp_path), result("hat-1"))
    with (tmp_path / RESULTS).open("a") as file:
        file.write(f"{damaged}\n")
    with pytest.raises(CliError, match=r"Line 2 of .* is damaged"):
        BatchFolder(tmp_path)


def test_what_a_killed_run_left_half_written_is_gone_in_the_end(tmp_path: Path) -> None:
    left = tmp_path / ".hat-1_7.png.0123abcd.part"
    mine = tmp_path / "notes.part"
    for path in (left, mine):
        path.write_bytes(b"half")
    BatchFolder(tmp_path).finish()
    assert (left.exists(), mine.exists()) == (False, True)


# --- What stdin and plain text become ---


def submitted(
    monkeypatch: pytest.MonkeyPatch, text: bytes, *, has_columns: bool = False
) -> tuple[str, bytes]:
    """The name and the content of what stdin becomes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    with submittable(STDIN, has_columns=has_columns) as file:
        found = file.name, file.read_bytes()
    assert not file.exists()
    return found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'\n{"prompt": "a lake"}\n', "stdin.jsonl"),
        (b'"a lake"\n', "stdin.jsonl"),
        (b"prompt,seed\na lake,7\n", "stdin.csv"),
        (b'seed,"Prompt"\n7,a lake\n', "stdin.csv"),
        (b"custom_id;prompt;seed\na;a lake;7\n", "stdin.csv"),
        (b'"seed";"prompt"\n7;a lake\n', "stdin.csv"),
        (b"seed\tprompt\n7\ta lake\n", "stdin.csv"),
        (b"seed|prompt\n7|a lake\n", "stdin.csv"),
        (b'{"prompt": "a lake",}\n', "stdin.jsonl"),
        (b'{\n  "prompt": "a lake"\n}\n', "stdin.jsonl"),
    ],
)
def test_stdin_is_recognised_and_passed_on_as_it_is(
    text: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submitted(monkeypatch, text) == (name, text)
    packed = gzip.compress(text, mtime=0)
    assert submitted(monkeypatch, packed) == (f"{name}.gz", packed)


def test_with_a_template_stdin_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"sku,colour\nH-100,red\n"
    assert submitted(monkeypatch, text, has_columns=True) == ("stdin.csv", text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_lines_are_prompts(
    newline: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = newline.join(["\ufeffa cat, asleep", "", "  a {red|blue} dog ", 'a "Schloss" äöü'])
    name, lines = submitted(monkeypatch, text.encode())
    prompts = [json.loads(line)["prompt"] for line in lines.splitlines()]
    assert (name, prompts) == (
        "stdin.jsonl",
        ["a cat, asleep", "a {red|blue} dog", 'a "Schloss" äöü'],
    )
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    with submittable(tmp_path / "prompts.txt", has_columns=False) as file:
        assert (file.name, file.read_bytes()) == ("prompts.jsonl", lines)
    assert (tmp_path / "prompts.txt").exists()


@pytest.mark.parametrize("first", ["{green|blue} hat", '"A" and "B"', '"{a|b}" in "c"'])
def test_a_prompt_may_begin_like_json(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, lines = submitted(monkeypatch, f"{first}\na scarf\n".encode())
    prompts = [json.loads(line)["prompt"] for line in lines.splitlines()]
    assert (name, prompts) == ("stdin.jsonl", [first, "a scarf"])


DAMAGED = gzip.compress(b"a lake\n", mtime=0)[:10] + b"\xff" * 20
"""A good header before what is not deflated."""


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xff\xfe\x00", b"\x1f\x8b\x00", DAMAGED])
def test_stdin_that_is_no_text_is_refused(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CliError) as refused:
        submitted(monkeypatch, text)
    assert refused.value.exit_code is ExitCode.USAGE


def test_a_file_without_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with (
        pytest.raises(CliError, match=r"no prompt in empty\.txt"),
        submittable(tmp_path / "empty.txt", has_columns=False),
    ):
        pass

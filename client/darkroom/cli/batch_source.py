"""What `batch run` submits: a file as it is, stdin, or plain text with a prompt on each line."""

import gzip
import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from darkroom.cli.failures import CliError, ExitCode

STDIN = Path("-")
_GZIP = b"\x1f\x8b"
_DELIMITERS = re.compile(r"[,;\t|]")
"""What the service takes between columns."""
_BROKEN_JSON = re.compile(r"\{\s*(\"|$)")
"""JSON that was meant as such: the service says what is wrong with it."""


@contextmanager
def submittable(source: Path, *, has_columns: bool) -> Iterator[Path]:
    """A JSONL or CSV file of the source, for as long as it is needed.

    Args:
        source: a file, or `-` for stdin.
        has_columns: the command says what columns are, so that it is CSV.
    """
    if source != STDIN and source.suffix != ".txt":
        yield source
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin"
        if source == STDIN:
            if sys.stdin.isatty():
                sys.stderr.write("Type one prompt on each line; end with Ctrl-D.\n")
            with copy.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            copy = source
        yield _as_lines(copy, Path(folder), has_columns)


def _as_lines(file: Path, folder: Path, has_columns: bool) -> Path:
    with file.open("rb") as start:
        is_packed = start.read(2) == _GZIP
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8-sig")
            if is_packed
            else file.open(encoding="utf-8-sig") as text
        ):
            first = next((line.strip() for line in text if line.strip()), "")
            form = _form_of(first, has_columns) if file.suffix != ".txt" else "text"
            if form == "text":
                text.seek(0)
                prompts = [line.strip() for line in text if line.strip()]
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CliError(f"{file.name} is not UTF-8 text: {error}.", ExitCode.USAGE) from error
    if not first:
        advice = "Give one prompt on each line."
        raise CliError(f"There is no prompt in {file.name}.", ExitCode.USAGE, advice)
    if form == "text":
        lines = folder / f"{file.stem}.jsonl"
        lines.write_text("".join(f"{json.dumps({'prompt': each})}\n" for each in prompts), "utf-8")
        return lines
    return file.rename(folder / f"stdin.{form}{'.gz' if is_packed else ''}")


def _form_of(first: str, has_columns: bool) -> str:
    """`jsonl`, `csv` or `text`, by the first line."""
    if _is_json(first):
        return "jsonl"
    names = [name.strip(' "').lower() for name in _DELIMITERS.split(first)]
    return "csv" if has_columns or "prompt" in names else "text"


def _is_json(line: str) -> bool:
    """Not `{red|blue} hat` nor `"A" and "B"`."""
    try:
        return isinstance(json.loads(line), dict | str)
    except (ValueError, RecursionError):
        return _BROKEN_JSON.match(line) is not None

"""A batch's folder: its images, a record of them, and what `batch run` needs to resume.

`.darkroom-batch.json` is written before the batch is submitted, with the idempotency key of the
submission: whatever happens afterwards, running again sends the same key and so gets the same
batch. `results.jsonl` has a line for each ended job, with the names of its files; it is only
appended to while images arrive, and sorted at the end.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from darkroom import encoding
from darkroom.cli.failures import CliError, ExitCode
from darkroom.cli.output import plain
from darkroom.types.batches import BatchResult
from darkroom.types.images import Image

STATE = ".darkroom-batch.json"
_VERSION = 1
RESULTS = "results.jsonl"
_UNSAFE = re.compile(r"[^\w.-]+")
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@dataclass(frozen=True)
class FolderState:
    """The batch that a folder belongs to. `batch_id` is None until the server has answered."""

    folder: Path
    source: str
    """The file's name, for people."""
    fingerprint: str
    """SHA-256 of the file and of the options it was submitted with."""
    idempotency_key: str
    server: str
    batch_id: str | None = None

    @classmethod
    def new(cls, folder: Path, source: Path, fingerprint: str, server: str) -> Self:
        """Create the state before the submission; it is on disk when this returns."""
        state = cls(folder, source.name, fingerprint, encoding.new_idempotency_key(), server)
        state._write()
        return state

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the folder's state; None if it has none.

        Raises:
            CliError: the file is damaged, or from a later version of this program.
        """
        path = folder / STATE
        try:
            result = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            result = None
        if not isinstance(result, dict) or result.pop("version", None) != _VERSION:
            raise CliError(
                f"{path} cannot be read: it is damaged, or another version of darkroom wrote it.",
                ExitCode.USAGE,
                f"Use another folder, or remove {path} to start a new batch in this one.",
            )
        return cls(folder=folder, **result)

    def with_batch(self, batch_id: str) -> Self:
        """Add the batch after the submission; it is on disk when this returns."""
        state = replace(self, batch_id=batch_id)
        state._write()
        return state

    def remove(self) -> None:
        """Remove the file: the server refused the batch, so there is nothing to resume."""
        (self.folder / STATE).unlink(missing_ok=True)

    def _write(self) -> None:
        kept: dict[str, Any] = {"version": _VERSION, **asdict(self)}
        del kept["folder"]
        encoding.write_file(self.folder / STATE, json.dumps(kept, indent=2).encode())


def fingerprint(source: Path, options: dict[str, Any]) -> str:
    """Identify a submission: the file's content and the options.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    with source.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class BatchFolder:
    """The images of a batch in a folder. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = path / RESULTS
        self._known: dict[str, dict[str, Any]] = self._read()
        # A running count: it is read after every job, while other threads record theirs.
        self.images = sum(len(entry["images"]) for entry in self._known.values())
        """How many there are."""
        self._lock = threading.Lock()
        self._names = {
            image["file"].lower(): image["id"]
            for entry in self._known.values()
            for image in entry["images"]
        }

    def has(self, result: BatchResult) -> bool:
        """Whether this result of this job is recorded, and its files still exist."""
        entry = self._known.get(result.job_id)
        return (
            entry is not None
            and entry["finished_at"] == result.raw.get("finished_at")
            and all((self.path / image["file"]).is_file() for image in entry["images"])
        )

    def names(self, result: BatchResult) -> dict[str, Path]:
        """Image id -> the path for its file."""
        with self._lock:
            return {image.id: self.path / self._name(result, image) for image in result.images}

    def holds(self, path: Path, image: Image) -> bool:
        """Whether the file contains exactly this image."""
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256
        except FileNotFoundError:
            return False

    def record(self, result: BatchResult, paths: Mapping[str, Path]) -> None:
        """Record a job whose files all exist."""
        entry = {
            "custom_id": result.custom_id,
            "line": result.line,
            "job_id": result.job_id,
            "state": result.state,
            "finished_at": result.raw.get("finished_at"),
            "images": [
                {"id": image.id, "seed": image.seed, "file": paths[image.id].name}
                for image in result.images
            ],
            "error": plain(result.error),
        }
        with self._lock:
            before = self._known.get(result.job_id, {"images": ()})
            self.images += len(entry["images"]) - len(before["images"])
            self._known[result.job_id] = entry
            with self._results.open("a", encoding="utf-8") as file:
                file.write(_line(entry))

    def finish(self) -> None:
        """Sort the record: one line for each job, in the order of the batch's lines."""
        with self._lock:
            ordered = sorted(
                self._known.values(), key=lambda entry: (entry["line"], entry["job_id"])
            )
            encoding.write_file(self._results, "".join(map(_line, ordered)).encode())
        for path in self.path.iterdir():
            if _PARTIAL.fullmatch(path.name):  # from a run that was killed
                path.unlink(missing_ok=True)

    def _name(self, result: BatchResult, image: Image) -> str:
        """`custom_id_seed.png`, plus a part of the image's id where that would not be unique."""
        safe = _UNSAFE.sub("_", result.custom_id).strip(".")
        extension = Path(image.file_name).suffix
        name = f"{safe}_{image.seed}{extension}"
        # Some file systems ignore case.
        if safe != result.custom_id or self._names.get(name.lower(), image.id) != image.id:
            name = f"{safe}_{image.seed}_{image.id[-8:]}{extension}"
        self._names[name.lower()] = image.id
        return name

    def _read(self) -> dict[str, dict[str, Any]]:
        """Job id -> its latest entry. A last line that a crash cut off is dropped.

        Raises:
            CliError: another line is damaged.
        """
        try:
            lines = self._results.read_text("utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        if lines and not lines[-1].endswith("\n"):
            encoding.write_file(self._results, "".join(lines[:-1]).encode())
            lines.pop()
        known = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                # What is read from an entry later.
                _ = entry["line"], entry["finished_at"]
                _ = [(image["file"], image["id"]) for image in entry["images"]]
                known[entry["job_id"]] = entry
            except (ValueError, KeyError, TypeError):
                raise CliError(
                    f"Line {number} of {self._results} is damaged.",
                    ExitCode.USAGE,
                    "Fix or remove the line; its job is then checked again.",
                ) from None
        return known


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n"

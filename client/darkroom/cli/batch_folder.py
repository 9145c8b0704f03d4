"""The pictures of a batch in a folder: each once, under a name that says what it is.

`results.jsonl` has a line for each job that has ended, with the names of its files. It is only
appended to while pictures come, and put in order at the end.
"""

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom import wire
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError
from darkroom.cli.plain import plain

if TYPE_CHECKING:
    from darkroom.types.batches import BatchResult
    from darkroom.types.images import Image

RESULTS = "results.jsonl"
_UNSAFE = re.compile(r"[^\w.-]+")
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_EXTENSIONS = {"image/png": "png", "image/webp": "webp", "image/jpeg": "jpg"}


class BatchFolder:
    """What of a batch is in a folder already, and what comes into it. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results = path / RESULTS
        self._known: dict[str, dict[str, Any]] = self._read()
        # Counted as they come: it is asked after every job, while other threads record theirs.
        self._pictures = sum(len(entry["images"]) for entry in self._known.values())
        self._lock = threading.Lock()
        self._names = {
            image["file"].lower(): image["id"]
            for entry in self._known.values()
            for image in entry["images"]
        }

    @property
    def pictures(self) -> int:
        """How many are there."""
        return self._pictures

    def has(self, result: "BatchResult") -> bool:
        """Whether this end of this job is on record, and its files are still there."""
        entry = self._known.get(result.job_id)
        return (
            entry is not None
            and entry["finished_at"] == result.raw.get("finished_at")
            and all((self.path / image["file"]).is_file() for image in entry["images"])
        )

    def names(self, result: "BatchResult") -> dict[str, Path]:
        """Image id -> where it belongs."""
        with self._lock:
            return {image.id: self.path / self._name(result, image) for image in result.images}

    def holds(self, path: Path, image: "Image") -> bool:
        """Whether this very picture is in the file."""
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256
        except FileNotFoundError:
            return False

    def record(self, result: "BatchResult", paths: Mapping[str, Path]) -> None:
        """Note a job whose files are all there."""
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
            self._pictures += len(entry["images"]) - len(before["images"])
            self._known[result.job_id] = entry
            with self._results.open("a", encoding="utf-8") as file:
                file.write(_line(entry))

    def settle(self) -> None:
        """Put the record in order: a line for each job, as the lines of the batch were."""
        with self._lock:
            ordered = sorted(
                self._known.values(), key=lambda entry: (entry["line"], entry["job_id"])
            )
            wire.write_file(self._results, "".join(map(_line, ordered)).encode())
        for path in self.path.iterdir():
            if _PARTIAL.fullmatch(path.name):  # of a run that was killed
                path.unlink(missing_ok=True)

    def _name(self, result: "BatchResult", image: "Image") -> str:
        """`custom_id_seed.png`; with a bit of the image's id where that would not be unique."""
        safe = _UNSAFE.sub("_", result.custom_id).strip(".")
        extension = _EXTENSIONS.get(image.content_type, "bin")
        name = f"{safe}_{image.seed}.{extension}"
        # Some file systems do not tell small letters from capital ones.
        if safe != result.custom_id or self._names.get(name.lower(), image.id) != image.id:
            name = f"{safe}_{image.seed}_{image.id[-8:]}.{extension}"
        self._names[name.lower()] = image.id
        return name

    def _read(self) -> dict[str, dict[str, Any]]:
        """job id -> its latest entry. A last line that was cut off by a crash is nothing.

        Raises:
            CliError: another line is none of ours.
        """
        try:
            lines = self._results.read_text("utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        if lines and not lines[-1].endswith("\n"):
            wire.write_file(self._results, "".join(lines[:-1]).encode())
            lines.pop()
        known = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                # What is read of an entry later.
                _ = entry["line"], entry["finished_at"]
                _ = [(image["file"], image["id"]) for image in entry["images"]]
                known[entry["job_id"]] = entry
            except (ValueError, KeyError, TypeError):
                raise CliError(
                    f"Line {number} of {self._results} is damaged.",
                    ExitCode.USAGE,
                    "Mend or remove the line; what it names is looked at again.",
                ) from None
        return known


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n"

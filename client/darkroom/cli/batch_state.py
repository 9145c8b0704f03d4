"""The file in a batch's folder that lets `batch run` go on where it was interrupted.

It is written before the batch is submitted, with the idempotency key of the submission: whatever
happens afterwards, running again sends the same key and so gets the same batch.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from darkroom import wire
from darkroom.cli.exits import ExitCode
from darkroom.cli.failures import CliError

NAME = ".darkroom-batch.json"
_VERSION = 1


@dataclass(frozen=True)
class BatchState:
    """What a folder knows of its batch. `batch_id` is None until the server has answered."""

    folder: Path
    source: str
    """Name of the file; for people."""
    fingerprint: str
    """SHA-256 over the file and the options that it was submitted with."""
    idempotency_key: str
    server: str
    batch_id: str | None = None

    @classmethod
    def new(cls, folder: Path, source: Path, fingerprint: str, server: str) -> Self:
        """The state before the submission, on disk when this returns."""
        state = cls(folder, source.name, fingerprint, wire.new_idempotency_key(), server)
        state._write()
        return state

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The folder's state; None where it has none.

        Raises:
            CliError: the file is damaged, or of a later version of this program.
        """
        path = folder / NAME
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
            raise CliError(
                f"{path} cannot be read: it is damaged, or another version of darkroom wrote it.",
                ExitCode.USAGE,
                f"Take another folder; or remove {path} to begin a new batch in this one.",
            )
        return cls(folder=folder, **found)

    def with_batch(self, batch_id: str) -> Self:
        """The state after the submission, on disk when this returns."""
        state = replace(self, batch_id=batch_id)
        state._write()
        return state

    def forget(self) -> None:
        """Remove the file: the server refused the batch, and there is nothing to go on with."""
        (self.folder / NAME).unlink(missing_ok=True)

    def _write(self) -> None:
        kept: dict[str, Any] = {"version": _VERSION, **asdict(self)}
        del kept["folder"]
        wire.write_file(self.folder / NAME, json.dumps(kept, indent=2).encode())


def fingerprint(source: Path, options: dict[str, Any]) -> str:
    """What makes a submission this one and no other.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    with source.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

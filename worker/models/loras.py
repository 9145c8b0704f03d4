"""The files of the LoRAs that jobs name: where they are on this machine, and their hashes."""

import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.core.errors import LoraUnavailable
from shared.core.model_catalog import LoraSpec
from shared.core.storage import ObjectMissing, Storage
from worker.engine.checkpoint import first_line, sha256_of
from worker.engine.interface import Lora

_DISK_BYTES = 8 * 2**30
"""Of uploaded LoRAs that a worker keeps on disk; where that is small (a container's /tmp), half."""


class LoraFiles:
    """The catalogue's LoRAs, and those that tenants uploaded. Thread-safe; a file of the catalogue
    is hashed again when it has changed."""

    def __init__(self, specs: Sequence[LoraSpec], storage: Storage | None = None) -> None:
        self._storage = storage
        self._folder = Path(tempfile.mkdtemp(prefix="darkroom-loras-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._fetching = threading.Lock()
        self._specs = {spec.name: spec for spec in specs}
        self._hashes = FileHashes()

    def of(self, loras: Sequence[dict[str, Any]]) -> tuple[Lora, ...]:
        """The LoRAs of a job, as its row has them.

        Raises:
            LoraUnavailable: one is not in the catalogue any more, or its file is not here.
        """
        return tuple(
            self._uploaded(lora)
            if "s3_key" in lora
            else self._one(lora["name"], float(lora["scale"]))
            for lora in loras
        )

    def _uploaded(self, lora: dict[str, Any]) -> Lora:
        """One of a tenant's own, brought here from S3 and kept for a while."""
        path = self._folder / f"{lora['sha256']}.safetensors"
        with self._fetching:
            if path.exists():
                path.touch()
            else:
                self._fetch(lora, path)
                self._make_room(path)
        return Lora(lora["name"], lora["sha256"], float(lora["scale"]), path)

    def _fetch(self, lora: dict[str, Any], path: Path) -> None:
        part = path.with_suffix(".part")
        try:
            if self._storage is None:
                raise ObjectMissing
            with part.open("wb") as file:
                self._storage.read_into(lora["s3_key"], file)
            if sha256_of(part) != lora["sha256"]:
                raise LoraUnavailable(f"The file of LoRA {lora['name']!r} is damaged.")
            part.rename(path)
        except ObjectMissing as error:
            raise LoraUnavailable(f"LoRA {lora['name']!r} has been deleted.") from error
        except OSError as error:
            raise LoraUnavailable(
                f"LoRA {lora['name']!r} cannot be kept on disk: {error.strerror}."
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, newest: Path) -> None:
        """Delete those used longest ago; who is loading one has it open."""
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        most = min(_DISK_BYTES, shutil.disk_usage(self._folder).total // 2)
        for path in files:
            if total <= most or path == newest:
                return
            total -= path.stat().st_size
            path.unlink()

    def _one(self, name: str, scale: float) -> Lora:
        spec = self._specs.get(name)
        if spec is None:
            raise LoraUnavailable(f"LoRA {name!r} is not in this worker's catalogue.")
        path = locate(spec)
        try:
            return Lora(name, self._hashes.of(path), scale, path)
        except OSError as error:
            raise LoraUnavailable(f"LoRA {name!r} cannot be read: {error.strerror}.") from error


class FileHashes:
    """SHA-256 of files, read again when they have changed. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}
        self._lock = threading.Lock()

    def of(self, path: Path) -> str:
        """In hexadecimal.

        Raises:
            OSError: it cannot be read.
        """
        status = path.stat()
        version = (status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == version:
            return known[1]
        digest = sha256_of(path)
        with self._lock:
            self._known[path] = version, digest
        return digest


def locate(spec: LoraSpec) -> Path:
    """The file of a LoRA; one of the hub is downloaded at its pinned revision.

    Raises:
        LoraUnavailable: there is no such file, or it cannot be said which one is meant.
    """
    source = Path(spec.source)
    if source.is_file():
        return source
    if source.is_dir():
        if spec.file is not None:
            return source / spec.file
        files = sorted(source.glob("*.safetensors"))
        if len(files) != 1:
            raise LoraUnavailable(
                f"The folder of LoRA {spec.name!r} has {len(files)} safetensors files: "
                "`file` in models.toml says which one."
            )
        return files[0]
    if spec.source.startswith((".", "/")) or spec.source.count("/") != 1:
        raise LoraUnavailable(f"The file of LoRA {spec.name!r} does not exist.")
    if spec.revision is None or spec.file is None:
        raise LoraUnavailable(
            f"LoRA {spec.name!r} comes from the hub and needs `revision` and `file` in models.toml."
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(spec.source, spec.file, revision=spec.revision))
    except Exception as error:
        raise LoraUnavailable(
            f"LoRA {spec.name!r} could not be fetched from the hub: {first_line(error)}"
        ) from error

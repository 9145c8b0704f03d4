"""The files of the ControlNets that jobs name: where they are on this machine, and their hashes."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from shared.core.errors import ControlNetUnavailable
from shared.core.model_catalog import ControlNetSpec
from worker.engine.checkpoint import first_line
from worker.engine.interface import Control
from worker.models.loras import FileHashes


class ControlNetFiles:
    """The catalogue's ControlNets. Thread-safe."""

    def __init__(self, specs: Sequence[ControlNetSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._hashes = FileHashes()

    def of(
        self, controls: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
    ) -> tuple[Control, ...]:
        """The ControlNets of a job, as its options have them, with what they see.

        Raises:
            ControlNetUnavailable: one is not in the catalogue any more, or its files are not here.
        """
        return tuple(
            self._one(control, image) for control, image in zip(controls, images, strict=True)
        )

    def _one(self, control: Mapping[str, Any], image: Image.Image) -> Control:
        name = control["name"]
        spec = self._specs.get(name)
        if spec is None:
            raise ControlNetUnavailable(f"ControlNet {name!r} is not in this worker's catalogue.")
        path = locate(spec)
        try:
            sha256 = self._hash(path)
        except OSError as error:
            message = f"ControlNet {name!r} cannot be read: {error.strerror}."
            raise ControlNetUnavailable(message) from error
        scale, start, end = (float(control[name]) for name in ("scale", "start", "end"))
        return Control(name, sha256, path, image, scale, start, end)

    def _hash(self, path: Path) -> str:
        """Over the config and the weights."""
        weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        config = (path if path.is_dir() else path.parent) / "config.json"
        digests = "".join(self._hashes.of(file) for file in (config, *weights))
        return hashlib.sha256(digests.encode()).hexdigest()


def locate(spec: ControlNetSpec) -> Path:
    """The folder of a ControlNet, or its file of weights; one of the hub is downloaded.

    Raises:
        ControlNetUnavailable: there is no such file, or no revision is pinned.
    """
    source = Path(spec.source)
    if source.exists():
        return source / spec.file if spec.file is not None else source
    if spec.source.startswith((".", "/")) or spec.source.count("/") != 1:
        raise ControlNetUnavailable(f"The files of ControlNet {spec.name!r} do not exist.")
    if spec.revision is None:
        raise ControlNetUnavailable(
            f"ControlNet {spec.name!r} comes from the hub and needs a `revision` in models.toml."
        )
    from huggingface_hub import snapshot_download

    whole = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors"]
    wanted = [spec.file] if spec.file is not None else [*whole, "*.safetensors.index.json"]
    try:
        folder = Path(
            snapshot_download(
                spec.source, revision=spec.revision, allow_patterns=["config.json", *wanted]
            )
        )
    except Exception as error:
        raise ControlNetUnavailable(
            f"ControlNet {spec.name!r} could not be fetched from the hub: {first_line(error)}"
        ) from error
    return folder / spec.file if spec.file is not None else folder

"""Open a checkpoint: check it before torch sees it, hash it, load it as a diffusers pipeline."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec

_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HASHED = (".json", ".txt", ".model", ".safetensors")
_NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that the engine leaves out: they judge pictures or take pictures as prompts."""


def locate(spec: ModelSpec) -> Path:
    """The folder with the checkpoint's files; a hub id is downloaded at its pinned revision.

    Raises:
        ModelUnavailable: there is no such folder or repository, or no revision is pinned.
    """
    folder = Path(spec.source)
    if folder.is_dir():
        return folder
    if spec.source.startswith((".", "/")) or spec.source.count("/") != 1:
        raise ModelUnavailable(f"The folder {spec.source} of model {spec.name!r} does not exist.")
    if spec.revision is None:
        raise ModelUnavailable(
            f"Model {spec.name!r} comes from the hub ({spec.source}) and pins no revision."
        )
    _forbid_custom_code()
    from diffusers import DiffusionPipeline

    try:
        return Path(
            DiffusionPipeline.download(
                spec.source,
                revision=spec.revision,
                variant=spec.variant,
                use_safetensors=True,
            )
        )
    except Exception as error:
        raise ModelUnavailable(
            f"Model {spec.name!r} could not be fetched from the hub ({spec.source} at "
            f"{spec.revision}): {_first_line(error)}"
        ) from error


def verify(folder: Path) -> dict[str, Any]:
    """Check that the folder holds a whole diffusers checkpoint in safetensors.

    Returns:
        The contents of `model_index.json`.

    Raises:
        ModelUnavailable: it does not; one sentence says what is wrong.
    """
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ModelUnavailable(f"{folder} is no diffusers checkpoint: model_index.json is missing.")
    try:
        index = json.loads(index_path.read_text("utf-8"))
        pipeline = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{index_path} is not a diffusers model index.") from error
    if not isinstance(pipeline, str):
        raise ModelUnavailable(
            f"{folder} asks for pipeline code of its own, which is never run: {pipeline!r}."
        )
    for name, component in index.items():
        if name.startswith("_") or name in _NOT_LOADED or not isinstance(component, list):
            continue
        if component[0] is not None:
            _verify_component(folder, name)
    return dict(index)


def content_hash(folder: Path) -> str:
    """SHA-256 over the checkpoint: its sorted (relative path, SHA-256 of the file) pairs.

    Counted are the config, tokenizer and weight files of the components that
    `model_index.json` names; pictures, licences and notes beside them do not change a model.
    """
    index = verify(folder)
    parts = [name for name in index if not name.startswith("_") and name not in _NOT_LOADED]
    files = [folder / "model_index.json"]
    for part in parts:
        files += [path for path in (folder / part).glob("*") if path.suffix in _HASHED]
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_sha256, files))
    total = hashlib.sha256()
    for path, digest in zip(files, digests, strict=True):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()


def load_pipeline(spec: ModelSpec, folder: Path, index: dict[str, Any], dtype: Any) -> Any:
    """Load the checkpoint as diffusers' text-to-image pipeline, on the CPU, in `dtype`.

    Raises:
        ModelUnavailable: it cannot be loaded, or makes no pictures from text.
    """
    _forbid_custom_code()
    import diffusers
    import transformers
    from diffusers import AutoPipelineForText2Image

    options: dict[str, Any] = {name: None for name in _NOT_LOADED if name in index}
    if "safety_checker" in index:
        options["requires_safety_checker"] = False
    if index["_class_name"].startswith("StableDiffusionXL"):
        options["add_watermarker"] = False
    _quieten(diffusers.utils.logging)
    _quieten(transformers.utils.logging)
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            folder,
            dtype=dtype,
            variant=spec.variant,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    except ValueError as error:
        if "AutoPipeline" not in str(error):
            raise ModelUnavailable(_cannot_load(spec, error)) from error
        raise ModelUnavailable(
            f"Model {spec.name!r} is a {index['_class_name']}, which makes no pictures from text."
        ) from error
    except Exception as error:
        raise ModelUnavailable(_cannot_load(spec, error)) from error
    for name, part in pipeline.components.items():
        if any(tensor.is_meta for tensor in getattr(part, "parameters", tuple)()):
            raise ModelUnavailable(
                f"Model {spec.name!r} cannot be loaded: "
                f"the weights of {name} do not fit its config."
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _verify_component(folder: Path, name: str) -> None:
    part = folder / name
    if not part.is_dir():
        raise ModelUnavailable(f"{folder} is incomplete: its folder {name} is missing.")
    weights = sorted(part.glob("*.safetensors"))
    pickled = [path for path in sorted(part.iterdir()) if path.suffix in _PICKLED]
    if pickled and not weights:
        raise ModelUnavailable(
            f"{folder} holds pickled weights ({name}/{pickled[0].name}); pickles can run code, so "
            "only safetensors are loaded."
        )
    if not weights and (part / "config.json").is_file():
        raise ModelUnavailable(f"{folder} is incomplete: {name} has no .safetensors weights.")
    for path in weights:
        _verify_safetensors(path)


def _verify_safetensors(path: Path) -> None:
    """Compare the file's size with what its header promises.

    The format: 8 bytes of little-endian header length, a JSON header with the byte range of each
    tensor, the data (https://github.com/huggingface/safetensors#format).
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        tensors = (value for name, value in header.items() if name != "__metadata__")
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailable(f"{path} is not a safetensors file.") from error
    if size < 8 + length + end:
        missing = 8 + length + end - size
        raise ModelUnavailable(f"{path} is truncated: {missing} bytes are missing.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quieten(library_log: Any) -> None:
    """Errors only, no bars: cut prompts and refused checkpoints are reported in our own words."""
    library_log.set_verbosity_error()
    library_log.disable_progress_bar()


def _forbid_custom_code() -> None:
    """Repositories may carry Python; diffusers reads its switch, once renamed, on import."""
    for switch in ("DIFFUSERS_DISABLE_REMOTE_CODE", "DIFFUSERS_DISABLE_CUSTOM_CODE"):
        os.environ[switch] = "1"


def _cannot_load(spec: ModelSpec, error: Exception) -> str:
    return f"Model {spec.name!r} cannot be loaded: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Open a checkpoint: check it before torch sees it, hash it, load it as a diffusers pipeline."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shared.core.errors import ModelUnavailable
from shared.core.families import family_of_pipeline
from shared.core.model_catalog import IpAdapterSpec, ModelSpec
from shared.core.safetensors import NotSafetensors, Truncated, read_header

_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_HASHED = (".json", ".txt", ".model", ".safetensors")
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that the engine leaves out: they judge images or take images as prompts."""


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
            f"{spec.revision}): {first_line(error)}"
        ) from error


def verify(folder: Path, gguf: Path | None = None) -> dict[str, Any]:
    """Check that the folder holds a whole diffusers checkpoint in safetensors.

    Args:
        folder: of the checkpoint.
        gguf: a file with the transformer's weights, which the folder then need not have.

    Returns:
        The contents of `model_index.json`.

    Raises:
        ModelUnavailable: it does not; one sentence says what is wrong.
    """
    if gguf is not None and not (gguf.is_file() and (folder / "transformer").is_dir()):
        raise ModelUnavailable(
            f"{gguf} is no file, or {folder} has no transformer to fill with it."
        )
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ModelUnavailable(
            f"{folder} is not a diffusers checkpoint: model_index.json is missing."
        )
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
        if name.startswith("_") or name in NOT_LOADED or not isinstance(component, list):
            continue
        if component[0] is not None and not (gguf and name == "transformer"):
            _verify_component(folder, name)
    return dict(index)


def content_hash(folder: Path, gguf: Path | None = None) -> str:
    """SHA-256 over the checkpoint: its sorted (relative path, SHA-256 of the file) pairs.

    Counted are the config, tokenizer and weight files of the components that
    `model_index.json` names; images, licences and notes beside them do not change a model.
    """
    index = verify(folder, gguf)
    parts = [name for name in index if not name.startswith("_") and name not in NOT_LOADED]
    files = [folder / "model_index.json"]
    for part in parts:
        files += [path for path in (folder / part).glob("*") if path.suffix in _HASHED]
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(sha256_of, files))
    total = hashlib.sha256()
    for path, digest in zip(files, digests, strict=True):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest}\n".encode())
    if gguf is not None:
        total.update(f"gguf\0{sha256_of(gguf)}\n".encode())
    return total.hexdigest()


def locate_ip_adapter(spec: IpAdapterSpec, model: str) -> tuple[Path, str]:
    """The folder with an adapter's files, and the SHA-256 over those that are used.

    Raises:
        ModelUnavailable: one is missing, or no whole safetensors file.
    """
    folder, encoder = Path(spec.source), spec.image_encoder
    if not folder.is_dir():
        if spec.source.startswith((".", "/")) or spec.source.count("/") != 1:
            raise ModelUnavailable(f"The folder {folder} of {model!r}'s ip_adapter does not exist.")
        if spec.revision is None:
            raise ModelUnavailable(f"The ip_adapter of model {model!r} pins no revision.")
        from huggingface_hub import snapshot_download

        wanted = [spec.file, *(f"{encoder}/*{kind}" for kind in (".json", ".safetensors"))]
        try:
            folder = Path(
                snapshot_download(spec.source, revision=spec.revision, allow_patterns=wanted)
            )
        except Exception as error:
            raise ModelUnavailable(
                f"The ip_adapter of model {model!r} could not be fetched from the hub: "
                f"{first_line(error)}"
            ) from error
    path = folder / spec.file
    if not path.is_file():
        raise ModelUnavailable(f"The ip_adapter's file {path} of model {model!r} does not exist.")
    _verify_safetensors(path)
    _verify_component(folder, encoder)
    found = [file for file in sorted((folder / encoder).glob("*")) if file.suffix in _HASHED]
    digests = "".join(sha256_of(file) for file in (path, *found))
    return folder, hashlib.sha256(digests.encode()).hexdigest()


def load_pipeline(spec: ModelSpec, folder: Path, index: dict[str, Any], dtype: Any) -> Any:
    """Load the checkpoint as diffusers' text-to-image pipeline, on the CPU, in `dtype`.

    Raises:
        ModelUnavailable: it cannot be loaded, or makes no images from text.
    """
    _forbid_custom_code()
    import diffusers
    import transformers
    from diffusers import AutoPipelineForText2Image

    _quieten(diffusers.utils.logging)
    _quieten(transformers.utils.logging)
    options = _options(spec, folder, index, dtype)
    opener = AutoPipelineForText2Image
    if family_of_pipeline(index["_class_name"]):  # `AutoPipeline` does not know them all
        opener = getattr(diffusers, index["_class_name"])
    try:
        pipeline = opener.from_pretrained(
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
            f"Model {spec.name!r} is a {index['_class_name']}, not a text-to-image pipeline."
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


def _options(spec: ModelSpec, folder: Path, index: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """What is left out, given or changed while a pipeline is loaded."""
    options: dict[str, Any] = {name: None for name in NOT_LOADED if name in index}
    if "safety_checker" in index:
        options["requires_safety_checker"] = False
    if index["_class_name"].startswith("StableDiffusionXL"):
        options["add_watermarker"] = False
    if spec.gguf is not None:
        options["transformer"] = _from_gguf(spec, Path(spec.gguf), folder, dtype)
    if spec.quantization is not None:
        options["quantization_config"] = _quantization(spec, spec.quantization, index)
    return options


def _quantization(spec: ModelSpec, kind: str, index: dict[str, Any]) -> Any:
    """Of what a tick and an encoding compute; VAEs are small, and suffer most.

    Raises:
        ModelUnavailable: the library is not installed.
    """
    _need(spec, "quantized", kind.partition("-")[0])
    from diffusers import PipelineQuantizationConfig, TorchAoConfig

    parts = [name for name in index if name.startswith(("unet", "transformer", "text_encoder"))]
    if kind.startswith("torchao"):
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        each = Int8WeightOnlyConfig if kind.endswith("int8") else Float8WeightOnlyConfig
        networks = [name for name in parts if not name.startswith("text_encoder")]
        return PipelineQuantizationConfig(
            quant_mapping={name: TorchAoConfig(each()) for name in networks}
        )
    bits = "load_in_8bit" if kind.endswith("8bit") else "load_in_4bit"
    return PipelineQuantizationConfig(
        quant_backend=kind.replace("-", "_"),
        quant_kwargs={bits: True},
        components_to_quantize=parts,
    )


def _from_gguf(spec: ModelSpec, path: Path, folder: Path, dtype: Any) -> Any:
    """The transformer over the weights of a GGUF file, which stay quantized.

    Raises:
        ModelUnavailable: there is no such file, its library is missing, or it does not fit.
    """
    _need(spec, "stored", "gguf")
    import diffusers
    from diffusers import GGUFQuantizationConfig

    config = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
    try:
        return getattr(diffusers, config["_class_name"]).from_single_file(
            str(path),
            config=str(folder),
            subfolder="transformer",
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            dtype=dtype,
            local_files_only=True,
        )
    except Exception as error:
        raise ModelUnavailable(_cannot_load(spec, error)) from error


def _need(spec: ModelSpec, how: str, library: str) -> None:
    """Say so first: diffusers' own sentence depends on which component it happens to load first."""
    if find_spec(library) is None:
        raise ModelUnavailable(
            f"Model {spec.name!r} is {how} with {library}, which is not installed here."
        )


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
    """Compare the file with what its header promises."""
    try:
        with path.open("rb") as file:
            read_header(file, path.stat().st_size)
    except Truncated as error:
        raise ModelUnavailable(f"{path} is truncated: {error}.") from error
    except NotSafetensors as error:
        raise ModelUnavailable(f"{path} is not a safetensors file: {error}.") from error


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
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
    return f"Model {spec.name!r} cannot be loaded: {first_line(error)}"


def first_line(error: Exception) -> str:
    """What a library says first; some go on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

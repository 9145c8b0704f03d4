"""A checkpoint that was opened: the pipeline on its device, and the facts that receipts record."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec
from worker.engine import checkpoint
from worker.engine.device import Device
from worker.engine.families import family_named
from worker.engine.interface import ModelFacts, RunFacts
from worker.engine.network import Compile
from worker.engine.schedules import config_of


@dataclass(frozen=True)
class LoadedModel:
    """What every torch backend starts from."""

    spec: ModelSpec
    pipeline: Any
    device: Device
    content_hash: str
    dtype: str
    memory_bytes: int
    """Of the weights of all components."""

    def _declared(self) -> dict[str, Any]:
        """Settings that few models have, where `models.toml` names them."""
        names = ("text_tokens", "true_guidance_scale", "text_encoder", "offload", "quantization")
        declared = {
            name: getattr(self.spec, name) for name in names if name in self.spec.model_fields_set
        }
        gguf = {"gguf": Path(self.spec.gguf).name} if self.spec.gguf else {}
        return declared | gguf

    def facts(self, family: str, batch_size: int, cpu_threads: int | None = None) -> ModelFacts:
        """The model, for heartbeats."""
        return ModelFacts(
            name=self.spec.name,
            content_hash=self.content_hash,
            revision=self.spec.revision,
            family=family,
            dtype=self.dtype,
            device=self.device.name,
            batch_size=batch_size,
            cpu_threads=cpu_threads,
            memory_bytes=self.memory_bytes,
        )

    def run_facts(
        self,
        scheduler: Any,
        batch_size: int,
        notes: tuple[str, ...],
        dtype: str | None = None,
        compiled: Compile = "off",
    ) -> RunFacts:
        """What a receipt records about one image; `compiled` is how the network ran for it."""
        import diffusers

        return RunFacts(
            model=self.spec.name,
            content_hash=self.content_hash,
            revision=self.spec.revision,
            scheduler_class=type(scheduler).__name__,
            scheduler_config=config_of(scheduler),
            dtype=dtype or self.dtype,
            device=self.device.name,
            torch_version=str(torch.__version__),
            diffusers_version=str(diffusers.__version__),
            cuda_version=torch.version.cuda,
            batch_size=batch_size,
            cpu_threads=self.device.cpu_threads,
            speed={
                "channels_last": self.spec.channels_last,
                "fuse_qkv": self.spec.fuse_qkv,
                "compile": compiled,
                "vae_tiling": self.spec.vae_tiling,
                **self._declared(),
                **_matrix_products(self.device.torch_device),
            },
            notes=notes,
        )


class LoadedBackend:
    """What both backends of loaded models say of their device."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._device = loaded.device

    def is_out_of_memory(self, error: BaseException) -> bool:
        return self._device.is_out_of_memory(error)

    def is_fatal(self, error: BaseException) -> bool:
        return self._device.is_fatal(error)

    @property
    def allocated_bytes(self) -> int | None:
        return self._device.allocated_bytes

    def release_memory(self) -> None:
        self._device.release_memory()

    def close(self) -> None:
        self._device.close()


def _matrix_products(device: torch.device) -> dict[str, str]:
    """Which of MKL's ways of computing them, which is part of the bits on a CPU."""
    uses_mkl = device.type == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return {"mkl_cbwr": os.environ.get("MKL_CBWR", "")} if uses_mkl else {}


def load(spec: ModelSpec, device: Device) -> LoadedModel:
    """Find, check, hash and load a checkpoint, and move it to the device.

    Raises:
        ModelUnavailable: with one sentence that says why.
    """
    folder = checkpoint.locate(spec)
    gguf = Path(spec.gguf) if spec.gguf else None
    index = checkpoint.verify(folder, gguf)
    content_hash = checkpoint.content_hash(folder, gguf)
    dtype = _dtype(spec, device, str(index["_class_name"]))
    pipeline = checkpoint.load_pipeline(spec, folder, index, dtype)
    try:
        _place(spec, pipeline, device.torch_device)
    except Exception as error:
        if not device.is_out_of_memory(error):
            raise
        raise ModelUnavailable(
            f"Model {spec.name!r} does not fit into the memory of {device.name}."
        ) from error
    _tune(spec, pipeline)
    return LoadedModel(
        spec,
        pipeline,
        device,
        content_hash,
        str(dtype).removeprefix("torch."),
        _memory_bytes(pipeline, device.torch_device),
    )


def _place(spec: ModelSpec, pipeline: Any, device: torch.device) -> None:
    """Move the weights to where the model's settings want them while it waits."""
    if spec.offload == "group":
        pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level")
    elif spec.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif spec.offload == "none" and spec.text_encoder == "device":
        pipeline.to(device)
    elif spec.offload == "none":
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module) and not name.startswith("text_encoder"):
                part.to(device)


def _memory_bytes(pipeline: Any, device: torch.device) -> int:
    """What the weights take on the device while no image is made."""
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if tensor.device.type == device.type
    )


def _dtype(spec: ModelSpec, device: Device, pipeline_class: str) -> torch.dtype:
    """As declared; `auto` is float32 on a CPU, and on a GPU what suits the family."""
    name: str = spec.dtype
    if name == "auto":
        family = family_named(pipeline_class)
        half = family.half_precision if family else "float16"
        name = "float32" if device.torch_device.type == "cpu" else half
    return getattr(torch, name)


def _tune(spec: ModelSpec, pipeline: Any) -> None:
    """The model's speed switches, apart from `compile` (see `network`)."""
    vae, unet = getattr(pipeline, "vae", None), getattr(pipeline, "unet", None)
    if spec.channels_last:
        for part in (unet, vae):
            if part is not None:
                part.to(memory_format=torch.channels_last)
    if spec.fuse_qkv and hasattr(pipeline, "fuse_qkv_projections"):
        pipeline.fuse_qkv_projections()
    if spec.vae_slicing and vae is not None:
        vae.enable_slicing()
    if spec.vae_tiling and vae is not None:
        vae.enable_tiling()

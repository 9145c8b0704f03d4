"""A checkpoint that was opened: the pipeline on its device, and the facts that receipts record."""

from dataclasses import dataclass
from typing import Any

import torch

from shared.core.errors import ModelUnavailable
from shared.core.model_catalog import ModelSpec
from worker.engine import checkpoint
from worker.engine.device import Device
from worker.engine.interface import ModelFacts, RunFacts
from worker.engine.schedules import config_of
from worker.engine.unet import Compile


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

    def facts(self, family: str, rows: int) -> ModelFacts:
        """The model as it is announced."""
        return ModelFacts(
            name=self.spec.name,
            content_hash=self.content_hash,
            revision=self.spec.revision,
            family=family,
            dtype=self.dtype,
            device=self.device.name,
            rows=rows,
            memory_bytes=self.memory_bytes,
        )

    def run_facts(
        self,
        scheduler: Any,
        rows: int,
        notes: tuple[str, ...],
        dtype: str | None = None,
        compiled: Compile = "off",
    ) -> RunFacts:
        """What a receipt records about one image; `compiled` is how the UNet ran for it."""
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
            rows=rows,
            cpu_threads=self.device.cpu_threads,
            speed={
                "channels_last": self.spec.channels_last,
                "fuse_qkv": self.spec.fuse_qkv,
                "compile": compiled,
                "vae_tiling": self.spec.vae_tiling,
            },
            notes=notes,
        )


def load(spec: ModelSpec, device: Device) -> LoadedModel:
    """Find, check, hash and load a checkpoint, and move it to the device.

    Raises:
        ModelUnavailable: with one sentence that says why.
    """
    folder = checkpoint.locate(spec)
    index = checkpoint.verify(folder)
    content_hash = checkpoint.content_hash(folder)
    dtype = _dtype(spec, device)
    pipeline = checkpoint.load_pipeline(spec, folder, index, dtype)
    try:
        pipeline.to(device.torch_device)
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
        _memory_bytes(pipeline),
    )


def _memory_bytes(pipeline: Any) -> int:
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    )


def _dtype(spec: ModelSpec, device: Device) -> torch.dtype:
    if spec.dtype == "auto":
        return torch.float32 if device.torch_device.type == "cpu" else torch.float16
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return dtype


def _tune(spec: ModelSpec, pipeline: Any) -> None:
    """The model's speed switches, apart from `compile` (see `unet`)."""
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

"""The models that speed is measured with: true widths, random weights.

Speed does not depend on the weights' values, so each model is made in the device's memory from its
published config and never touches a disk. The tokenizers are the toys', and so is T5, but for its
width: texts are encoded once an image, beside 20 ticks.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from shared.core.model_catalog import ModelSpec
from tests.toy_models import make_t5_tokenizer, make_tokenizer, save_toy, t5_config
from worker.engine.batched_backend import BatchedBackend
from worker.engine.device import open_device
from worker.engine.families import family_of
from worker.engine.interface import ImageRequest, QueueClass
from worker.engine.loaded import LoadedModel, load
from worker.engine.network import Compile

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_FLOW_VAE = {
    **_VAE,
    "sample_size": 1024,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


class Opener:
    """Holds the model that is measured, and no other: a device has no room for two."""

    def __init__(self, device: str, home: Path) -> None:
        self._device, self._home = device, home
        self._held: tuple[str, LoadedModel] | None = None

    def open(self, spec: ModelSpec) -> LoadedModel:
        """The model of that name."""
        if self._held is None or self._held[0] != spec.name:
            self._held = None
            free()
            self._held = (spec.name, self._load(spec))
        loaded = self._held[1]
        return LoadedModel(
            spec,
            loaded.pipeline,
            loaded.device,
            loaded.content_hash,
            loaded.dtype,
            loaded.memory_bytes,
        )

    def _load(self, spec: ModelSpec) -> LoadedModel:
        device = open_device(self._device)
        if spec.name.startswith("toy-"):
            folder = self._home / spec.name
            save_toy(spec.name.removeprefix("toy-"), folder)
            return load(spec.model_copy(update={"source": str(folder)}), device)
        dtype = torch.bfloat16 if spec.name == "flux" else torch.float16
        with made_on(device.torch_device, dtype):
            parts = PARTS[spec.name]()
        pipeline = assembled(spec.name, parts)
        pipeline.set_progress_bar_config(disable=True)
        name = str(dtype).removeprefix("torch.")
        return LoadedModel(spec, pipeline, device, "random weights", name, 0)


@dataclass(frozen=True)
class Opened:
    """A model as one part measures it: at a size, with a scheduler."""

    opener: Opener
    name: str
    side: int
    steps: int
    scheduler: str
    guidance_scale: float

    def backend(self, rows: int, mode: Compile) -> BatchedBackend:
        """At so many rows."""
        loaded = self.opener.open(
            ModelSpec(
                name=self.name,
                source=self.name,
                scheduler=self.scheduler,
                max_batch_size=rows,
                compile=mode,
                default_width=self.side,
                default_height=self.side,
                default_guidance_scale=self.guidance_scale,
            )
        )
        family = family_of(loaded.pipeline)
        assert family is not None
        return BatchedBackend(loaded, family)

    @property
    def pipeline(self) -> Any:
        """diffusers' own, over the same weights."""
        return self.backend(1, "off")._loaded.pipeline

    def request(self, seed: int, queue_class: QueueClass = "interactive") -> ImageRequest:
        """An image; each has a text of its own to encode."""
        return ImageRequest(
            prompt=f"image number {seed}",
            negative_prompt=None,
            seed=seed,
            width=self.side,
            height=self.side,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            queue_class=queue_class,
        )


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New modules have their weights there, in that precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device, torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def assembled(name: str, parts: dict[str, Any]) -> Any:
    """The pipeline over its parts; tokenizers and scheduler are made here, on the host."""
    for part in parts.values():
        part.eval()
    tokenizers: dict[str, Any] = {
        part.replace("text_encoder", "tokenizer"): (
            make_t5_tokenizer() if "T5" in type(encoder).__name__ else make_tokenizer()
        )
        for part, encoder in parts.items()
        if part.startswith("text_encoder")
    }
    class_name, scheduler, options = _REST[name]
    pipeline = getattr(diffusers, class_name)
    return pipeline(scheduler=scheduler(), **parts, **tokenizers, **options)


def _sd21() -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKL(**_VAE, sample_size=512, scaling_factor=0.18215),
        "text_encoder": transformers.CLIPTextModel(
            _text(hidden_size=1024, num_hidden_layers=23, heads=16)
        ),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
    }


def _sdxl() -> dict[str, Any]:
    return {
        "vae": diffusers.AutoencoderKL(
            **_VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True
        ),
        "text_encoder": transformers.CLIPTextModel(
            _text(hidden_size=768, num_hidden_layers=12, heads=12)
        ),
        "text_encoder_2": _open_clip(),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
    }


def _sd3(layers: int = 24) -> dict[str, Any]:
    """Medium."""
    return {
        "vae": diffusers.AutoencoderKL(**_FLOW_VAE, scaling_factor=1.5305, shift_factor=0.0609),
        "text_encoder": transformers.CLIPTextModelWithProjection(
            _text(hidden_size=768, num_hidden_layers=12, heads=12, projection_dim=768)
        ),
        "text_encoder_2": _open_clip(),
        "text_encoder_3": transformers.T5EncoderModel(t5_config(4096)),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=128,
            num_layers=layers,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        ),
    }


def _flux(layers: tuple[int, int] = (19, 38)) -> dict[str, Any]:
    """Dev."""
    return {
        "vae": diffusers.AutoencoderKL(**_FLOW_VAE, scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": transformers.CLIPTextModel(
            _text(hidden_size=768, num_hidden_layers=12, heads=12)
        ),
        "text_encoder_2": transformers.T5EncoderModel(t5_config(4096)),
        "transformer": diffusers.FluxTransformer2DModel(
            num_layers=layers[0], num_single_layers=layers[1], guidance_embeds=True
        ),
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
}
"""What has weights, by the model's name."""

_REST: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "sd21": (
        "StableDiffusionPipeline",
        lambda: diffusers.PNDMScheduler(
            **_BETAS, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False
        ),
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        lambda: diffusers.EulerDiscreteScheduler(
            **_BETAS, timestep_spacing="leading", steps_offset=1
        ),
        {"add_watermarker": False},
    ),
    "sd3": (
        "StableDiffusion3Pipeline",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        {},
    ),
    "flux": (
        "FluxPipeline",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        {},
    ),
}
"""The pipeline's class, its scheduler, and what else it takes."""


def _open_clip() -> Any:
    return transformers.CLIPTextModelWithProjection(
        _text(hidden_size=1280, num_hidden_layers=32, heads=20, projection_dim=1280)
    )


def _text(*, heads: int, hidden_size: int, **values: Any) -> Any:
    tokenizer = make_tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_attention_heads=heads,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **values,
    )

"""True-width checkpoints with random weights: speed does not depend on the weights' values.

The architecture is that of the published models, the tokenizer that of the toys (it has no
influence on speed); they are written once to a throw-away folder in half precision.
"""

from pathlib import Path
from typing import Any

import torch

from deploy.toy_models import BUILDERS, make_tokenizer

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


def write_model(name: str, folder: Path, device: str) -> None:
    """Write the checkpoint `sd21`, `sdxl`, or one of the toys by its own name."""
    if name in ("sd21", "sdxl"):
        torch.manual_seed(0)
        with torch.device(device):
            pipeline = _sd21() if name == "sd21" else _sdxl()
        pipeline.to(torch.float16).save_pretrained(folder)
        return
    BUILDERS[name.removeprefix("toy-")](folder)


def _sd21() -> Any:
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel

    return StableDiffusionPipeline(
        vae=AutoencoderKL(**_VAE, sample_size=512, scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_text(hidden_size=1024, num_hidden_layers=23, heads=16)),
        tokenizer=make_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        scheduler=PNDMScheduler(
            **_BETAS, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**_VAE, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(_text(hidden_size=768, num_hidden_layers=12, heads=12)),
        text_encoder_2=CLIPTextModelWithProjection(
            _text(hidden_size=1280, num_hidden_layers=32, heads=20, projection_dim=1280)
        ),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(),
        unet=UNet2DConditionModel(
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
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def _text(*, heads: int, hidden_size: int, **values: Any) -> Any:
    from transformers import CLIPTextConfig

    tokenizer = make_tokenizer()
    return CLIPTextConfig(
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

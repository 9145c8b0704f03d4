"""Build toy-width checkpoints: the true architecture of each model family, with random weights.

They are ordinary diffusers folders of a few megabytes (tokenizer included), made from configs
alone in about a second, so that tests and first runs need neither a network nor a GPU. Their
pictures are abstract; their code path is exactly that of the full-size models.

    python -m deploy.toy_models sd15 FOLDER
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NATIVE_SIZE = 64
"""Side of a toy picture in pixels: 8 latents of 8 pixels each, as in the full-size models."""

_MAX_TOKENS = 77
_WIDTHS = (16, 32, 32, 32)
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_sd15(folder: Path, seed: int = 0) -> None:
    """Stable Diffusion 1.x: one CLIP text encoder, epsilon prediction, PNDM."""
    _build_stable_diffusion(folder, seed)


def build_sd21(folder: Path, seed: int = 0) -> None:
    """Stable Diffusion 2.x base: OpenCLIP text encoder, linear projections, epsilon prediction."""
    _build_stable_diffusion(folder, seed, openclip=True)


def build_sd21v(folder: Path, seed: int = 0) -> None:
    """Stable Diffusion 2.x at 768: as the base model, with v-prediction."""
    _build_stable_diffusion(folder, seed, openclip=True, prediction_type="v_prediction")


def build_sdxl(folder: Path, seed: int = 0) -> None:
    """Stable Diffusion XL: two text encoders, time ids, a VAE that asks for float32, Euler."""
    from diffusers import EulerDiscreteScheduler

    _build_stable_diffusion_xl(
        folder,
        seed,
        EulerDiscreteScheduler(**_SD_BETAS, timestep_spacing="leading", steps_offset=1),
    )


def build_turbo(folder: Path, seed: int = 0) -> None:
    """SDXL Turbo: XL with its schedule, of which one to four steps from the end are enough."""
    from diffusers import EulerAncestralDiscreteScheduler

    _build_stable_diffusion_xl(
        folder,
        seed,
        EulerAncestralDiscreteScheduler(**_SD_BETAS, timestep_spacing="trailing"),
    )


def build_edm(folder: Path, seed: int = 0) -> None:
    """XL as Playground v2.5 has it: a schedule of EDM's kind, latents of a given mean and width."""
    from diffusers import EDMEulerScheduler

    _build_stable_diffusion_xl(
        folder,
        seed,
        EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
        latents_mean=[-1.6, 0.3, 2.1, -0.2],
        latents_std=[8.4, 5.9, 3.7, 5.0],
    )


def build_lcm(folder: Path, seed: int = 0) -> None:
    """A latent consistency model: guidance as a time embedding, so one half only."""
    import torch
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    LatentConsistencyModelPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        tokenizer=make_tokenizer(),
        unet=_unet(time_cond_proj_dim=16),
        scheduler=LCMScheduler(**_SD_BETAS, steps_offset=1, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def build_pag(folder: Path, seed: int = 0) -> None:
    """Perturbed-attention guidance over 1.x: a pipeline that the engine runs as a whole."""
    _build_stable_diffusion(folder, seed, pipeline="StableDiffusionPAGPipeline")


def build_flux(folder: Path, seed: int = 0) -> None:
    """Flux: a transformer with flow matching, run as a whole; its sizes are multiples of 16."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel, T5TokenizerFast

    torch.manual_seed(seed)
    vae, width = _vae(shift_factor=0.1159), 32
    FluxPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config()).eval(),
        tokenizer=make_tokenizer(),
        text_encoder_2=T5EncoderModel(_t5_config(width)).eval(),
        tokenizer_2=T5TokenizerFast(
            vocab=_t5_vocabulary(), extra_ids=0, model_max_length=_MAX_TOKENS
        ),
        transformer=FluxTransformer2DModel(
            in_channels=4 * vae.config.latent_channels,  # patches of 2 × 2 latents
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ).save_pretrained(folder)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd15": build_sd15,
    "sd21": build_sd21,
    "sd21v": build_sd21v,
    "sdxl": build_sdxl,
    "turbo": build_turbo,
    "edm": build_edm,
    "lcm": build_lcm,
    "pag": build_pag,
    "flux": build_flux,
}
"""Family name on the command line -> its builder."""


def _build_stable_diffusion_xl(folder: Path, seed: int, scheduler: Any, **vae: Any) -> None:
    import torch
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    pooled, time_width = 32, 8
    StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025, force_upcast=True, **vae),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(
            _text_config(hidden_act="gelu", projection_dim=pooled)
        ).eval(),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(),
        unet=_unet(
            block_out_channels=_WIDTHS[:3],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4, 4),
            transformer_layers_per_block=(1, 1, 2),
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=time_width,
            projection_class_embeddings_input_dim=6 * time_width + pooled,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)


def _build_stable_diffusion(
    folder: Path,
    seed: int,
    *,
    openclip: bool = False,
    prediction_type: str = "epsilon",
    pipeline: str = "StableDiffusionPipeline",
) -> None:
    import diffusers
    import torch
    from diffusers import PNDMScheduler
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    heads: dict[str, Any] = (
        {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True} if openclip else {}
    )
    getattr(diffusers, pipeline)(
        vae=_vae(),
        text_encoder=CLIPTextModel(
            _text_config(hidden_act="gelu" if openclip else "quick_gelu")
        ).eval(),
        tokenizer=make_tokenizer(),
        unet=_unet(**heads),
        scheduler=PNDMScheduler(
            **_SD_BETAS,
            steps_offset=1,
            skip_prk_steps=True,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _unet(**overrides: Any) -> Any:
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": NATIVE_SIZE // 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": _WIDTHS,
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**config, **overrides}).eval()


def _vae(**overrides: Any) -> Any:
    from diffusers import AutoencoderKL

    widths = (8, 16, 16, 16)
    config: dict[str, Any] = {
        "sample_size": NATIVE_SIZE,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "norm_num_groups": 8,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**{**config, **overrides}).eval()


def _text_config(**overrides: Any) -> Any:
    from transformers import CLIPTextConfig

    vocabulary = _vocabulary()
    config: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": _MAX_TOKENS,
        "projection_dim": 32,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    return CLIPTextConfig(**{**config, **overrides})


def _t5_config(width: int) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=len(_t5_vocabulary()),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
    )


def _t5_vocabulary() -> list[tuple[str, float]]:
    """(piece, score): printable ASCII, one token a character; a blank is SentencePiece's bar."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    return [(piece, -float(rank)) for rank, piece in enumerate(pieces)]


def make_tokenizer() -> Any:
    """A CLIP tokenizer over bytes, one token each: made from nothing, good for any text."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=_MAX_TOKENS)


def _vocabulary() -> dict[str, int]:
    """CLIP's byte alphabet without merges: every text has tokens, one per byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{char}</w>" for char in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def main(arguments: list[str] | None = None) -> int:
    """Command line: `python -m deploy.toy_models FAMILY FOLDER [--seed N]`."""
    parser = argparse.ArgumentParser(prog="python -m deploy.toy_models", description=__doc__)
    parser.add_argument("family", choices=sorted(BUILDERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    options = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    build: Any = BUILDERS[options.family]
    build(options.folder, options.seed)
    print(f"Wrote a toy {options.family} checkpoint to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

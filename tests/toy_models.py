"""Build toy-width checkpoints: the true architecture of each model family, with random weights.

They are ordinary diffusers folders of a few megabytes (tokenizer included), made from configs
alone in about a second, so that tests need neither a network nor a GPU. Their images are abstract;
their code path is exactly that of the full-size models.
"""

import worker.engine  # noqa: F401  (before torch: its threads must sleep, not spin)

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

NATIVE_SIZE = 64
"""Side of a toy image in pixels: 8 latents of 8 pixels each, as in the full-size models."""

_MAX_TOKENS = 77
_WIDTHS = (16, 32, 32, 32)
_SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_sd15() -> Any:
    """Stable Diffusion 1.x: one CLIP text encoder, epsilon prediction, PNDM."""
    return _stable_diffusion()


def build_sd21() -> Any:
    """Stable Diffusion 2.x base: OpenCLIP text encoder, linear projections, epsilon prediction."""
    return _stable_diffusion(openclip=True)


def build_sd21v() -> Any:
    """Stable Diffusion 2.x at 768: as the base model, with v-prediction."""
    return _stable_diffusion(openclip=True, prediction_type="v_prediction")


def build_sdxl() -> Any:
    """Stable Diffusion XL: two text encoders, time ids, a VAE that asks for float32, Euler."""
    return _stable_diffusion_xl(_leading_euler())


def build_turbo() -> Any:
    """SDXL Turbo: XL with its schedule, of which one to four steps from the end are enough."""
    return _stable_diffusion_xl(
        diffusers.EulerAncestralDiscreteScheduler(**_SD_BETAS, timestep_spacing="trailing")
    )


def build_edm() -> Any:
    """XL as Playground v2.5 has it: a schedule of EDM's kind, latents of a given mean and width."""
    return _stable_diffusion_xl(
        diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
        latents_mean=[-1.6, 0.3, 2.1, -0.2],
        latents_std=[8.4, 5.9, 3.7, 5.0],
    )


def build_lcm() -> Any:
    """A latent consistency model: guidance as a time embedding, so one half only."""
    return diffusers.LatentConsistencyModelPipeline(
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(_text_config()).eval(),
        tokenizer=make_tokenizer(),
        unet=_unet(time_cond_proj_dim=16),
        scheduler=diffusers.LCMScheduler(**_SD_BETAS, steps_offset=1, set_alpha_to_one=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sd15_inpaint() -> Any:
    """Stable Diffusion 1.x for inpainting: its UNet reads mask and masked image, too."""
    return _stable_diffusion(in_channels=9, pipeline="StableDiffusionInpaintPipeline")


def build_sdxl_inpaint() -> Any:
    """Stable Diffusion XL for inpainting."""
    return _stable_diffusion_xl(
        _leading_euler(), in_channels=9, pipeline="StableDiffusionXLInpaintPipeline"
    )


def build_pag() -> Any:
    """Perturbed-attention guidance over 1.x: a pipeline that the engine runs as a whole."""
    return _stable_diffusion(pipeline="StableDiffusionPAGPipeline")


def build_sd3() -> Any:
    """Stable Diffusion 3: two CLIP encoders and T5, a transformer with flow matching."""
    return _stable_diffusion_3()


def build_sd35() -> Any:
    """Stable Diffusion 3.5 medium: dual attention, normalized queries and keys."""
    return _stable_diffusion_3(dual_attention_layers=(0,), qk_norm="rms_norm")


def build_sd3pag() -> Any:
    """Perturbed-attention guidance over 3: run as a whole; its sizes are multiples of 16."""
    return _stable_diffusion_3(pipeline="StableDiffusion3PAGPipeline")


def build_flux() -> Any:
    """FLUX.1 dev: packed latents, T5 and CLIP, the guidance scale as an input."""
    return _flux(guidance_embeds=True)


def build_schnell() -> Any:
    """FLUX.1 schnell: no guidance, an unshifted schedule of a few steps."""
    return _flux(guidance_embeds=False)


def build_pixart() -> Any:
    """PixArt-Sigma: masked T5, a learned variance beside the noise."""
    width = 32
    return diffusers.PixArtSigmaPipeline(
        tokenizer=make_t5_tokenizer(),
        text_encoder=transformers.T5EncoderModel(t5_config(width)).eval(),
        vae=_vae(scaling_factor=0.13025),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=32,
            sample_size=NATIVE_SIZE // 8,
            caption_channels=width,
            use_additional_conditions=False,
        ).eval(),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear"
        ),
    )


def build_sana() -> Any:
    """Sana: Gemma, linear attention, latents of 32 pixels."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return _sana(diffusers.SanaPipeline, scheduler)


def build_sprint() -> Any:
    """Sana Sprint: an embedded guidance scale, one to four steps."""
    scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    return _sana(
        diffusers.SanaSprintPipeline,
        scheduler,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
    )


def build_flux2() -> Any:
    """FLUX.2 dev: three layers of Mistral 3 as text, the guidance scale as an input."""
    width = 16
    text = _qwen_widths(width) | {"model_type": "mistral", "head_dim": 16, "num_hidden_layers": 31}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config={**vision, "model_type": "pixtral", "num_attention_heads": 2, "head_dim": 8},
    )
    return _flux2(
        diffusers.Flux2Pipeline, transformers.Mistral3ForConditionalGeneration, config, dev=True
    )


def build_klein() -> Any:
    """FLUX.2 Klein: three layers of Qwen 3 as text, guidance in two calls."""
    layers = {"num_hidden_layers": 28, "head_dim": 16}
    config = transformers.Qwen3Config(**_qwen_widths(16) | layers)
    return _flux2(diffusers.Flux2KleinPipeline, transformers.Qwen3ForCausalLM, config, dev=False)


def build_qwen() -> Any:
    """Qwen-Image: a language model that sees, a VAE for films."""
    width, channels = 32, 16
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
        vae=diffusers.AutoencoderKLQwenImage(base_dim=4, z_dim=channels, num_res_blocks=1).eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(_qwen_vl_config(width)).eval(),
        tokenizer=make_qwen_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * channels,
            out_channels=channels,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
    )


def build_zimage() -> Any:
    """Z-Image: Qwen 3, lists of texts."""
    vae, width = _flow_vae(), 32
    config = transformers.Qwen3Config(**_qwen_widths(width), head_dim=16)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=vae.config.latent_channels,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=width,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    ).eval()
    with torch.no_grad():  # allocated and not filled by its constructor
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_()
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=transformers.Qwen3Model(config).eval(),
        tokenizer=make_qwen_tokenizer(),
        transformer=transformer,
    )


def build_lumina2() -> Any:
    """Lumina-Image 2.0: Gemma, one sequence of text and image."""
    vae, width = _flow_vae(), 32
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=NATIVE_SIZE // 8,
            patch_size=2,
            in_channels=vae.config.latent_channels,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(512, 64, 64),
            cap_feat_dim=width,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae,
        text_encoder=transformers.Gemma2Model(_gemma2_config(width)).eval(),
        tokenizer=make_gemma_tokenizer(),
    )


_PIPELINES: dict[str, Callable[[], Any]] = {
    name.removeprefix("build_").replace("_", "-"): build
    for name, build in list(globals().items())
    if name.startswith("build_")
}


def save_toy(name: str, folder: Path, seed: int = 0) -> None:
    """Write a toy checkpoint: `sd15`, `sdxl-inpaint`, …, one of each `build_` above."""
    torch.manual_seed(seed)
    _PIPELINES[name]().save_pretrained(folder)


def build_controlnet(folder: Path, checkpoint: Path, seed: int = 0) -> None:
    """A ControlNet for a toy checkpoint of SD, SDXL, SD3 or FLUX."""
    torch.manual_seed(seed)
    pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(checkpoint)
    net: Any
    if hasattr(pipeline, "unet"):
        net = diffusers.ControlNetModel.from_unet(
            pipeline.unet, conditioning_embedding_out_channels=(4, 8, 8, 16)
        )
    elif type(pipeline).__name__ == "FluxPipeline":
        config = dict(pipeline.transformer.config) | {"num_layers": 1, "num_single_layers": 1}
        net = diffusers.FluxControlNetModel.from_config(config)
    else:
        config = dict(pipeline.transformer.config) | {"num_layers": 1}
        net = diffusers.SD3ControlNetModel.from_config(config)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            # Trainers begin with zeros, which would show nothing.
            if name.startswith(("controlnet_", "pos_embed_input")):
                weight.copy_(torch.randn_like(weight) * 0.1)
    net.save_pretrained(folder)


def _stable_diffusion_3(*, pipeline: str = "StableDiffusion3Pipeline", **transformer: Any) -> Any:
    vae, width, pooled = _flow_vae(), 64, 32
    return getattr(diffusers, pipeline)(
        vae=vae,
        text_encoder=transformers.CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer=make_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(
            _text_config(hidden_act="gelu")
        ).eval(),
        tokenizer_2=make_tokenizer(),
        text_encoder_3=transformers.T5EncoderModel(t5_config(width)).eval(),
        tokenizer_3=make_t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=NATIVE_SIZE // 8,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            caption_projection_dim=32,
            pooled_projection_dim=2 * pooled,
            pos_embed_max_size=16,
            **transformer,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(*, guidance_embeds: bool) -> Any:
    vae, width = _flow_vae(), 32
    return diffusers.FluxPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(_text_config()).eval(),
        tokenizer=make_tokenizer(),
        text_encoder_2=transformers.T5EncoderModel(t5_config(width)).eval(),
        tokenizer_2=make_t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=4 * vae.config.latent_channels,  # patches of 2 × 2 latents
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )


def _flux2(pipeline: Any, encoder: Any, config: Any, *, dev: bool) -> Any:
    width, channels = 16, 4
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=NATIVE_SIZE,
    ).eval()
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder(config).eval(),
        tokenizer=make_qwen_tokenizer(),
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=4 * channels,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * width,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=dev,
        ).eval(),
    )


def _leading_euler() -> Any:
    return diffusers.EulerDiscreteScheduler(**_SD_BETAS, timestep_spacing="leading", steps_offset=1)


def _stable_diffusion_xl(
    scheduler: Any,
    *,
    in_channels: int = 4,
    pipeline: str = "StableDiffusionXLPipeline",
    **vae: Any,
) -> Any:
    pooled, time_width = 32, 8
    return getattr(diffusers, pipeline)(
        vae=_vae(scaling_factor=0.13025, force_upcast=True, **vae),
        text_encoder=transformers.CLIPTextModel(_text_config()).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(
            _text_config(hidden_act="gelu", projection_dim=pooled)
        ).eval(),
        tokenizer=make_tokenizer(),
        tokenizer_2=make_tokenizer(),
        unet=_unet(
            in_channels=in_channels,
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
    )


def _stable_diffusion(
    *,
    openclip: bool = False,
    prediction_type: str = "epsilon",
    in_channels: int = 4,
    pipeline: str = "StableDiffusionPipeline",
) -> Any:
    heads: dict[str, Any] = (
        {"attention_head_dim": (2, 4, 4, 4), "use_linear_projection": True} if openclip else {}
    )
    return getattr(diffusers, pipeline)(
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(
            _text_config(hidden_act="gelu" if openclip else "quick_gelu")
        ).eval(),
        tokenizer=make_tokenizer(),
        unet=_unet(in_channels=in_channels, **heads),
        scheduler=diffusers.PNDMScheduler(
            **_SD_BETAS,
            steps_offset=1,
            skip_prk_steps=True,
            set_alpha_to_one=False,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _unet(**overrides: Any) -> Any:
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
    return diffusers.UNet2DConditionModel(**{**config, **overrides}).eval()


def _vae(**overrides: Any) -> Any:
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
    return diffusers.AutoencoderKL(**{**config, **overrides}).eval()


def _flow_vae() -> Any:
    """16 channels around a mean, without the convolutions between encoder and latents."""
    return _vae(
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _text_config(**overrides: Any) -> Any:
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
    return transformers.CLIPTextConfig(**{**config, **overrides})


def t5_config(width: int) -> Any:
    """T5 with one layer."""
    return transformers.T5Config(
        vocab_size=len(_t5_vocabulary()),
        d_model=width,
        d_kv=16,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
    )


def _sana(pipeline: Any, scheduler: Any, **transformer: Any) -> Any:
    """The autoencoder's latents are 32 pixels wide."""
    width, channels, widths = 32, 8, (8,) * 6
    return pipeline(
        tokenizer=make_gemma_tokenizer(),
        text_encoder=transformers.Gemma2Model(_gemma2_config(width)).eval(),
        vae=diffusers.AutoencoderDC(
            latent_channels=channels,
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6,
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            scaling_factor=0.41407,
        ).eval(),
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=width,
            sample_size=2,
            **transformer,
        ).eval(),
        scheduler=scheduler,
    )


def _gemma2_config(width: int) -> Any:
    return transformers.Gemma2Config(
        vocab_size=len(_gemma_vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def make_gemma_tokenizer() -> Any:
    """A Gemma tokenizer over printable ASCII, one token a character."""
    return transformers.GemmaTokenizer(vocab=_gemma_vocabulary(), merges=[], model_max_length=1024)


def _gemma_vocabulary() -> dict[str, int]:
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", "\n", *map(chr, range(33, 127))]
    return {piece: index for index, piece in enumerate(pieces)}


def _qwen_vl_config(width: int) -> Any:
    text = _qwen_widths(width) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}
    }
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config={**vision, "intermediate_size": 16}
    )


def _qwen_widths(width: int) -> dict[str, Any]:
    return {
        "vocab_size": len(_qwen_vocabulary()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    }


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen_tokenizer() -> Any:
    """A Qwen tokenizer over bytes, one token each, with marks for turns of a conversation."""
    return transformers.Qwen2Tokenizer(
        vocab=_qwen_vocabulary(),
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=2048,
        chat_template=_CHAT,
    )


def _qwen_vocabulary() -> dict[str, int]:
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {token: index for index, token in enumerate([*marks, *sorted(ByteLevel.alphabet())])}


def make_t5_tokenizer() -> Any:
    """A T5 tokenizer over printable ASCII, one token a character."""
    return transformers.T5TokenizerFast(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=512)


def _t5_vocabulary() -> list[tuple[str, float]]:
    """(piece, score): printable ASCII, one token a character; a blank is SentencePiece's bar."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *map(chr, range(33, 127))]
    return [(piece, -float(rank)) for rank, piece in enumerate(pieces)]


def make_tokenizer() -> Any:
    """A CLIP tokenizer over bytes, one token each: made from nothing, good for any text."""
    return transformers.CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=_MAX_TOKENS)


def _vocabulary() -> dict[str, int]:
    """CLIP's byte alphabet without merges: every text has tokens, one per byte."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{char}</w>" for char in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


def build_ip_adapter(checkpoint: Path, folder: Path, *, plus: bool = False, seed: int = 0) -> None:
    """An IP-Adapter for a toy UNet (`ip-adapter.safetensors`) and its image encoder, as they are
    published; `plus`: one that reads the encoder's last but one layer."""

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint, subfolder="unet")
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            projection_dim=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        )
    )
    encoder.save_pretrained(folder / "image_encoder")
    width = unet.config.cross_attention_dim
    tensors = _resampler(32, width) if plus else _projection(24, width)
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            layer = unet.get_submodule(name.removesuffix(".processor")).to_k
            for what in ("k", "v"):
                shape = layer.out_features, layer.in_features
                tensors[f"ip_adapter.{number}.to_{what}_ip.weight"] = torch.randn(shape) * 0.5
    save_file(tensors, folder / "ip-adapter.safetensors")


def _projection(embedded: int, width: int) -> dict[str, Any]:
    """Four tokens of an image's embedding."""

    return {
        "image_proj.proj.weight": torch.randn(4 * width, embedded),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }


def _resampler(hidden: int, width: int, inner: int = 64, tokens: int = 6) -> dict[str, Any]:
    """Six tokens by attention over the encoder's patches; heads are 64 wide."""

    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, tokens, inner),
        "proj_in.weight": (inner, hidden),
        "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for layer in range(4):
        shapes |= {
            f"layers.{layer}.0.to_q.weight": (64, inner),
            f"layers.{layer}.0.to_kv.weight": (128, inner),
            f"layers.{layer}.0.to_out.weight": (inner, 64),
            f"layers.{layer}.1.1.weight": (4 * inner, inner),
            f"layers.{layer}.1.3.weight": (inner, 4 * inner),
            **{
                f"layers.{layer}.{norm}.{what}": (inner,)
                for norm in ("0.norm1", "0.norm2", "1.0")
                for what in ("weight", "bias")
            },
        }
    return {f"image_proj.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}

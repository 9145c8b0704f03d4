"""Stable Diffusion 3 and 3.5 (medium, large, turbo)."""

from typing import Any

import torch
from PIL import Image

from shared.core.model_catalog import ModelSpec
from shared.core.prompt_weights import PromptSyntax, without_marks
from worker.engine.backend import Shape
from worker.engine.controls import Residuals
from worker.engine.device import Device
from worker.engine.families.flow import FlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import ChunkReader, Reader, Truncation, weighed
from worker.engine.row import Half, Kept, Tensors
from worker.engine.schedules import Schedules


class StableDiffusion3(FlowFamily):
    """Three text encoders (the third may be missing), a pooled embedding, halves in one call."""

    name = "sd3"
    encoders = ("text_encoder", "text_encoder_2")
    half_precision = "float16"
    control_class = "SD3ControlNetModel"
    own_sigmas = False
    default_text_tokens = 256
    max_shift = 1.16

    def __init__(
        self, pipeline: Any, device: Device, spec: ModelSpec, schedules: Schedules | None = None
    ) -> None:
        super().__init__(pipeline, device, spec, schedules)
        self._clip = [ChunkReader(each) for each in (pipeline.tokenizer, pipeline.tokenizer_2)]
        self._truncation = Truncation(self.readers())

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        if request.prompt_syntax == "weighted":
            text = self.text(request, half)
            return self.encoded(text, "weighted", lambda: self._encode_weighted(text, half))
        return self.embedding(request, half)

    def cut(self, prompt: str, syntax: PromptSyntax, is_long: bool) -> str | None:
        """What T5 does not read, or without it CLIP."""
        if self.pipeline.tokenizer_3 is None:
            return self._clip[0].read(prompt, syntax, is_long).cut
        return self._truncation.of(without_marks(prompt))

    def shift(self, request: ImageRequest) -> dict[str, float]:
        """Only where the checkpoint asks for it."""
        wanted = self.schedules.base_config.get("use_dynamic_shifting")
        return super().shift(request) if wanted else {}

    def noised(
        self,
        request: ImageRequest,
        image: torch.Tensor,
        timestep: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        device = self.device.torch_device
        return self.image_pipeline.prepare_latents(
            image, timestep, 1, 1, self.latents_dtype, device, generator
        )

    def repainted(
        self, request: ImageRequest, timestep: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Kept]:
        """From noise alone where all of the schedule runs."""
        image, mask = self.masked_image(request)
        latents, noise, clean = self.inpaint_pipeline.prepare_latents(
            *self.latents_arguments(request, self.dtype, generator),
            image=image,
            timestep=timestep,
            is_strength_max=request.strength == 1.0,
            return_noise=True,
            return_image_latents=True,
        )
        return latents, Kept(clean, noise, self.latent_mask(mask))

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return self.controlled(network, inputs, ())

    def controlled(self, network: Any, inputs: Tensors, residuals: Residuals) -> torch.Tensor:
        return network(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"],
            encoder_hidden_states=inputs["tokens"],
            pooled_projections=inputs["pooled"],
            joint_attention_kwargs=None,
            block_controlnet_hidden_states=residuals or None,
            return_dict=False,
        )[0]

    def control_fault(self, network: Any) -> str | None:
        """It must be as wide as the transformer, and read the same text."""
        its = network.config
        if not its.use_pos_embed or its.extra_conditioning_channels:
            return "sees its image in a way that is not supported"
        return self._misfit(network)

    def control_condition(
        self, network: Any, image: Image.Image, request: ImageRequest, generator: torch.Generator
    ) -> torch.Tensor:
        """The latents, with noise of its own for each half. Diffusers draws it from torch's global
        generator, which stands here as if the seed had been set just before."""
        vae = self.pipeline.vae
        pixels = self.control_pixels(image, request).to(self.device.torch_device, self.dtype)
        halves = torch.cat([pixels] * 2) if self.guided(request) else pixels
        latents = vae.encode(halves).latent_dist.sample(generator)
        shift = 0 if network.config.force_zeros_for_pooled_projection else vae.config.shift_factor
        return (latents - shift) * vae.config.scaling_factor

    def control_generator(
        self, request: ImageRequest, generator: torch.Generator
    ) -> torch.Generator:
        return torch.Generator("cpu").manual_seed(request.seed)

    def control(self, network: Any, inputs: Tensors, condition: torch.Tensor) -> Residuals:
        """Its few blocks add to all of the transformer's."""
        pooled = inputs["pooled"]
        if network.config.force_zeros_for_pooled_projection:
            pooled = torch.zeros_like(pooled)
        made = network(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"],
            encoder_hidden_states=inputs["tokens"],
            pooled_projections=pooled,
            controlnet_cond=condition,
            conditioning_scale=1.0,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        blocks = len(self.network.transformer_blocks)
        share = blocks / len(made)
        return [made[int(block / share)] for block in range(blocks)]

    def readers(self) -> list[Reader]:
        """T5 reads more than CLIP, where the checkpoint has it."""
        tokenizer = self.pipeline.tokenizer_3
        return super().readers() if tokenizer is None else [(tokenizer, self.text_tokens - 1)]

    def encode(self, text: str, half: Half) -> Tensors:
        """The tokens of all three, and CLIP's summaries."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=text,
            prompt_2=None,
            prompt_3=None,
            device=self.encode_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_tokens,
        )
        return {"tokens": tokens, "pooled": pooled}

    def _encode_weighted(self, text: str, half: Half) -> Tensors:
        """CLIP's tokens have weights; T5 reads the text without marks, as it would be plain."""
        encoders = self.pipeline.text_encoder, self.pipeline.text_encoder_2
        states, pooled = [], []
        for encoder, reader in zip(encoders, self._clip, strict=True):
            (chunk,) = reader.read(text, "weighted", False).chunks
            numbers = torch.tensor([chunk.tokens], device=self.encode_device)
            output = encoder(numbers, output_hidden_states=True)
            states.append(weighed(output.hidden_states[-2].to(encoders[0].dtype), chunk))
            pooled.append(output[0])
        clip = torch.cat(states, dim=-1)
        tokens = self.encode(without_marks(text), half)["tokens"].clone()
        tokens[:, : clip.shape[1], : clip.shape[2]] = clip
        return {"tokens": tokens, "pooled": torch.cat(pooled, dim=-1)}

"""FLUX.1: dev (its guidance scale is an input), schnell (none), and true guidance in two calls."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from worker.engine.backend import Shape
from worker.engine.controls import Residuals
from worker.engine.families.flow import PackedFlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Tensors


class Flux(PackedFlowFamily):
    """T5's tokens are not masked, so their number is in the bits."""

    name = "flux"
    encoders = ("text_encoder", "text_encoder_2")
    control_class = "FluxControlNetModel"
    shares_residuals = True

    def guided(self, request: ImageRequest) -> bool:
        """True guidance costs a second call: where there is a scale, and something to leave out."""
        scale = self.true_scale(request)
        negative = request.negative_prompt is not None or request.true_cfg_scale is not None
        return scale is not None and scale > 1 and negative

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """The text, and dev's guidance scale."""
        embedding = self.embedding(request, half)
        if not self._guidance_is_embedded:
            return embedding
        scale = torch.full([1], request.guidance_scale, dtype=torch.float32)
        return {**embedding, "guidance": scale}

    def constants(self, shape: Shape) -> Tensors:
        device, dtype = self.device.torch_device, self.dtype
        rows, columns = shape.height // 16, shape.width // 16
        return {
            "text_ids": torch.zeros(self.text_tokens, 3, device=device, dtype=dtype),
            "image_ids": self.pipeline._prepare_latent_image_ids(1, rows, columns, device, dtype),
        }

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return self.controlled(network, inputs, ())

    def controlled(self, network: Any, inputs: Tensors, residuals: Residuals) -> torch.Tensor:
        """The same, with what ControlNets add: first to the blocks of two streams."""
        count = len(self.network.transformer_blocks)
        return network(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"] / 1000,
            guidance=inputs.get("guidance"),
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["tokens"],
            txt_ids=inputs["text_ids"],
            img_ids=inputs["image_ids"],
            joint_attention_kwargs={},
            controlnet_block_samples=_all_or_none(residuals[:count]),
            controlnet_single_block_samples=_all_or_none(residuals[count:]),
            return_dict=False,
        )[0]

    def control_fault(self, network: Any) -> str | None:
        """It must be as wide as the transformer, and read the same text."""
        if network.union:
            return "is a union of several kinds, which is not supported"
        if network.config.guidance_embeds and not self._guidance_is_embedded:
            return "does not fit this model: it takes a guidance scale, as FLUX.1 dev does"
        return self._misfit(network)

    def control_condition(
        self, network: Any, image: Image.Image, request: ImageRequest, generator: torch.Generator
    ) -> torch.Tensor:
        """The latents, packed; some nets (XLabs') look at the pixels."""
        vae = self.pipeline.vae
        pixels = self.control_pixels(image, request).to(self.device.torch_device, vae.dtype)
        if network.input_hint_block is not None:
            return pixels
        latents = vae.encode(pixels).latent_dist.sample(generator)
        return self.pipeline._pack_latents(
            self.scale(latents), 1, self.channels, *latents.shape[2:]
        )

    def control(self, network: Any, inputs: Tensors, condition: torch.Tensor) -> Residuals:
        """With the positive prompt; its few blocks add to all of the transformer's."""
        blocks, single = network(
            hidden_states=inputs["sample"],
            controlnet_cond=condition,
            conditioning_scale=1.0,
            timestep=inputs["timestep"] / 1000,
            guidance=inputs["guidance"] if network.config.guidance_embeds else None,
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["tokens"],
            txt_ids=inputs["text_ids"],
            img_ids=inputs["image_ids"],
            joint_attention_kwargs={},
            return_dict=False,
        )
        repeats = network.input_hint_block is not None
        transformer = self.network
        return [
            *_spread(blocks, len(transformer.transformer_blocks), repeats=repeats),
            *_spread(single, len(transformer.single_transformer_blocks), repeats=False),
        ]

    def guidance(self, request: ImageRequest) -> float:
        """True guidance has a scale of its own."""
        return self.true_scale(request) or super().guidance(request)

    @property
    def _guidance_is_embedded(self) -> bool:
        return bool(self.network.config.guidance_embeds)

    @property
    def text_tokens(self) -> int:
        """As Black Forest Labs use them: 512 for dev, 256 for schnell."""
        return self.spec.text_tokens or (512 if self._guidance_is_embedded else 256)

    def readers(self) -> list[Reader]:
        """T5; CLIP gives only a summary."""
        return [(self.pipeline.tokenizer_2, self.text_tokens - 1)]

    def encode(self, text: str, half: Half) -> Tensors:
        """T5's tokens and CLIP's summary."""
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompt=text,
            prompt_2=None,
            device=self.encode_device,
            num_images_per_prompt=1,
            max_sequence_length=self.text_tokens,
        )
        return {"tokens": tokens, "pooled": pooled}


def _spread(made: Sequence[torch.Tensor] | None, blocks: int, *, repeats: bool) -> Residuals:
    """One for each of that many blocks: in turn, or each for its share of them."""
    if made is None:
        return [None] * blocks
    if repeats:
        return [made[block % len(made)] for block in range(blocks)]
    share = math.ceil(blocks / len(made))
    return [made[block // share] for block in range(blocks)]


def _all_or_none(residuals: Residuals) -> Residuals | None:
    return residuals if residuals and residuals[0] is not None else None

"""Qwen-Image."""

from collections.abc import Hashable, Mapping
from typing import Any, cast

import torch

from worker.engine.backend import Shape
from worker.engine.families.base import POSITIVE, Pass, per_channel
from worker.engine.families.flow import PackedFlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Row, Tensors

_NO_NEGATIVE = " "
"""What Qwen-Image's authors give where nobody has asked for anything."""

_TEXT_BUCKETS = (64, 128, 256, 512, 1024)
"""Tokens; in a batch each text is padded to the next of them, and masked."""


class QwenImage(PackedFlowFamily):
    """Guidance in two calls, rescaled; texts at own length alone, at a bucket's in a batch."""

    name = "qwen-image"
    variant_per_text = True

    def guided(self, request: ImageRequest) -> bool:
        """One that is distilled has its guidance embedded, and may have true guidance besides."""
        if self.network.config.guidance_embeds and request.true_cfg_scale is None:
            return False
        return self.guidance(request) > 1

    def guidance(self, request: ImageRequest) -> float:
        """The guidance scale, where the job gives no other."""
        asked = request.true_cfg_scale
        return request.guidance_scale if asked is None else asked

    def variant(self, request: ImageRequest, rows: int) -> Hashable:
        """The number of text tokens for each half; at one row the text's own, as in diffusers."""
        lengths = [self._length(self.text(request, half)) for half in self.halves(request)]
        return tuple(length if rows == 1 else _bucket(length) for length in lengths)

    def passes(self, shape: Shape) -> tuple[Pass, ...]:
        return self.guided_passes if _lengths(shape)[1:] else POSITIVE

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """The text; padded and masked where it shares a batch."""
        conditions = dict(self.embedding(request, half))
        if shape.batch_size > 1:
            tokens = conditions["tokens"]
            missing = _lengths(shape)[half == "negative"] - tokens.shape[1]
            mask = torch.ones(1, tokens.shape[1], dtype=torch.bool, device=tokens.device)
            conditions["tokens"] = torch.nn.functional.pad(tokens, (0, 0, 0, missing))
            conditions["mask"] = torch.nn.functional.pad(mask, (0, missing))
        if self.network.config.guidance_embeds:
            conditions["guidance"] = torch.full([1], request.guidance_scale, dtype=torch.float32)
        return conditions

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return network(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"] / 1000,
            guidance=inputs.get("guidance"),
            encoder_hidden_states_mask=inputs.get("mask"),
            encoder_hidden_states=inputs["tokens"],
            img_shapes=[[(1, shape.height // 16, shape.width // 16)]] * len(inputs["sample"]),
            attention_kwargs={},
            return_dict=False,
        )[0]

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """Guided predictions keep the length that the positive one has."""
        combined = super().combine(row, outputs)
        if "negative" not in outputs:
            return combined
        wanted = torch.norm(outputs["positive"], dim=-1, keepdim=True)
        return combined * (wanted / torch.norm(combined, dim=-1, keepdim=True))

    def spatial(self, latents: torch.Tensor, request: ImageRequest) -> torch.Tensor:
        """Unpacked, without the frames that its VAE knows."""
        return super().spatial(latents, request).squeeze(2)

    def sourced(self, latents: torch.Tensor) -> torch.Tensor:
        """The only frame of a film."""
        return latents.unsqueeze(2)

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """By a mean and a deviation for each channel."""
        config = self.pipeline.vae.config
        deviation = 1.0 / per_channel(config.latents_std, latents)
        return latents / deviation + per_channel(config.latents_mean, latents)

    def decode(self, row: Row) -> torch.Tensor:
        """The only frame of a film."""
        vae = self.pipeline.vae
        latents = self.spatial(row.latents, row.request).to(vae.dtype)
        frames = vae.decode(self.unscale(latents).unsqueeze(2), return_dict=False)[0]
        return frames[:, :, 0]

    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        encoded = vae.encode(image.to(vae.dtype).unsqueeze(2)).latent_dist.mode()
        latents: torch.Tensor = encoded.squeeze(2).float()
        mean = per_channel(vae.config.latents_mean, latents)
        return (latents - mean) / per_channel(vae.config.latents_std, latents)

    def readers(self) -> list[Reader]:
        """Behind the prompt stands the template's end."""
        return [(self.pipeline.tokenizer, self.text_tokens)]

    def text(self, request: ImageRequest, half: Half) -> str:
        """An empty negative prompt is not the same as none."""
        if half == "positive":
            return request.prompt
        negative = request.negative_prompt
        return _NO_NEGATIVE if negative is None else negative

    def _length(self, text: str) -> int:
        """Tokens of a text without the template around it."""
        whole = self.pipeline.prompt_template_encode.format(text)
        before: int = self.pipeline.prompt_template_encode_start_idx
        most = self.pipeline.tokenizer_max_length + before
        count = len(self.pipeline.tokenizer(whole, max_length=most, truncation=True).input_ids)
        return min(count - before, self.text_tokens)


def _bucket(length: int) -> int:
    return next((bucket for bucket in _TEXT_BUCKETS if length <= bucket), length)


def _lengths(shape: Shape) -> tuple[int, ...]:
    return cast("tuple[int, ...]", shape.variant)

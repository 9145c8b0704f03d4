"""PixArt-Sigma."""

from collections.abc import Mapping
from typing import Any

import torch

from worker.engine.backend import Shape
from worker.engine.families.diffusion import DiffusionFamily
from worker.engine.prompts import Reader
from worker.engine.row import Half, Row, Tensors


class PixArtSigma(DiffusionFamily):
    """A transformer over masked T5 tokens, of whose output half is a learned variance."""

    name = "pixart"
    half_precision = "float16"
    patch = 2
    default_text_tokens = 300

    @classmethod
    def fault(cls, pipeline: Any) -> str | None:
        """The transformer takes the VAE's latents."""
        missing = super().fault(pipeline)
        if missing is None and (
            pipeline.transformer.config.in_channels != pipeline.vae.config.latent_channels
        ):
            return "its transformer does not take the latents that its VAE makes"
        return missing

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return network(
            inputs["sample"],
            encoder_hidden_states=inputs["tokens"],
            encoder_attention_mask=inputs["mask"],
            timestep=inputs["timestep"],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """Without the learned variance."""
        combined = super().combine(row, outputs)
        learned = self.network.config.out_channels // 2 == self.network.config.in_channels
        return combined.chunk(2, dim=1)[0] if learned else combined

    def readers(self) -> list[Reader]:
        return [(self.pipeline.tokenizer, self.text_tokens - 1)]

    def encode(self, text: str, half: Half) -> Tensors:
        """The text as it was given, and which of its tokens count."""
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            device=self.encode_device,
            clean_caption=False,
            max_sequence_length=self.text_tokens,
        )
        return {"tokens": tokens, "mask": mask}

"""FLUX.2: dev (its guidance scale is an input) and Klein (guidance in two calls, or distilled).

Their image-to-image takes references to look at, which have no strength: it is not offered.
"""

from typing import Any

import torch

from worker.engine.backend import Shape
from worker.engine.families.flow import PackedFlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Prediction, Tensors


class Flux2(PackedFlowFamily):
    """A language model's layers as text, not masked."""

    name = "flux2"

    def guided(self, request: ImageRequest) -> bool:
        """The guidance is embedded."""
        return False

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        scale = torch.full([1], request.guidance_scale, dtype=torch.float32)
        return {**super().conditions(request, half, shape), "guidance": scale}

    def constants(self, shape: Shape) -> Tensors:
        device = self.device.torch_device
        text = torch.empty(1, self.text_tokens, 0)
        image = torch.empty(1, 0, shape.height // 16, shape.width // 16)
        return {
            "text_ids": self.pipeline._prepare_text_ids(text)[0].to(device),
            "image_ids": self.pipeline._prepare_latent_ids(image)[0].to(device),
        }

    def shift(self, request: ImageRequest) -> dict[str, float]:
        """As it was measured for numbers of tokens and steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return {"mu": compute_empirical_mu(self.tokens(request), request.steps)}

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return network(
            hidden_states=inputs["sample"],
            timestep=inputs["timestep"] / 1000,
            guidance=inputs.get("guidance"),
            encoder_hidden_states=inputs["tokens"],
            txt_ids=inputs["text_ids"],
            img_ids=inputs["image_ids"],
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]

    def spatial(self, latents: torch.Tensor, request: ImageRequest) -> torch.Tensor:
        """Unpacked; each of them still holds 2 × 2."""
        rows, columns = request.height // 16, request.width // 16
        (tokens,) = latents
        return torch.stack([tokens.view(rows, columns, -1).permute(2, 0, 1)])

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """By the running mean and deviation of the VAE's batch norm."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
        variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
        deviation = torch.sqrt(variance).to(latents.device, latents.dtype)
        return self.pipeline._unpatchify_latents(latents * deviation + mean)

    def clean(self, seen: Prediction, request: ImageRequest) -> torch.Tensor:
        """In the VAE's own latents, of which there are four times as many."""
        return self.unscale(super().clean(seen, request))

    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        """Encoded without noise."""
        vae = self.pipeline.vae
        return vae.encode(image.to(vae.dtype)).latent_dist.mode().float()

    def readers(self) -> list[Reader]:
        """The template takes part of the places."""
        reader = self.pipeline.tokenizer
        tokenizer = getattr(reader, "tokenizer", reader)  # dev's is a processor around it
        return [(tokenizer, self.text_tokens - len(tokenizer(self._template()).input_ids))]

    def _template(self) -> str:
        """What stands around a text."""
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        messages = format_input(prompts=[""], system_message=self.pipeline.system_message)
        return self.pipeline.tokenizer.apply_chat_template(messages[0], tokenize=False)

    def text(self, request: ImageRequest, half: Half) -> str:
        """It takes no negative prompt."""
        return request.prompt if half == "positive" else ""


class Flux2Klein(Flux2):
    """Smaller, with Qwen 3; the negative half is always the empty text."""

    name = "flux2-klein"

    def guided(self, request: ImageRequest) -> bool:
        """Not where it is distilled."""
        return request.guidance_scale > 1 and not self.pipeline.config.is_distilled

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        return self.embedding(request, half)

    def _template(self) -> str:
        return self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )

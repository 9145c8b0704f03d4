"""Sana, Sana 1.5 and Sana Sprint."""

import copy
import dataclasses
import inspect
import math
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from worker.engine.backend import Shape
from worker.engine.families.base import Start
from worker.engine.families.flow import FlowFamily
from worker.engine.interface import ImageRequest
from worker.engine.prompts import Reader
from worker.engine.row import Half, Prediction, Row, Tensors


class Sana(FlowFamily):
    """Masked Gemma tokens, latents of 32 pixels that stay in float32 between two ticks."""

    name = "sana"
    latent_factor = 32
    patch = 1
    own_sigmas = False
    float32_latents = True
    encodes_halves_alike = False
    default_text_tokens = 300
    _one_half: Mapping[str, Any] = MappingProxyType({"do_classifier_free_guidance": False})

    def shift(self, request: ImageRequest) -> dict[str, float]:
        """In the scheduler's config, the same for all sizes."""
        return {}

    def step_options(self, generator: torch.Generator) -> dict[str, Any]:
        """Whatever the scheduler's step takes of these."""
        return self.pipeline.prepare_extra_step_kwargs(generator, 0.0)

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """The timestep as the transformer scales it."""
        scale = self.network.config.timestep_scale
        return {"sample": row.latents, "timestep": (timestep.reshape(1) * scale).float()}

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        output: torch.Tensor = network(
            inputs["sample"].to(self.dtype),
            encoder_hidden_states=inputs["tokens"].to(self.dtype),
            encoder_attention_mask=inputs["mask"],
            timestep=inputs["timestep"],
            return_dict=False,
        )[0]
        return output.float()

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """Without a learned variance, where there is one."""
        combined = super().combine(row, outputs)
        learned = self.network.config.out_channels // 2 == self.channels
        return combined.chunk(2, dim=1)[0] if learned else combined

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.pipeline.vae.config.scaling_factor

    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        """A deterministic encoder."""
        vae = self.pipeline.vae
        return vae.encode(image.to(vae.dtype)).latent.float() * vae.config.scaling_factor

    def readers(self) -> list[Reader]:
        return [(self.pipeline.tokenizer, self.text_tokens)]

    def encode(self, text: str, half: Half) -> Tensors:
        """The text and its mask; the positive one behind the pipeline's long instruction."""
        call = inspect.signature(self.pipeline.__call__).parameters
        instruction = call["complex_human_instruction"].default if half == "positive" else None
        tokens, mask, *_ = self.pipeline.encode_prompt(
            text,
            device=self.encode_device,
            clean_caption=False,
            max_sequence_length=self.text_tokens,
            complex_human_instruction=instruction,
            **self._one_half,
        )
        return {"tokens": tokens, "mask": mask}


class SanaSprint(Sana):
    """Consistency along an arc from noise to image (TrigFlow): https://arxiv.org/abs/2503.09641.

    A timestep is an angle, π/2 being noise; guidance is embedded.
    """

    name = "sana-sprint"
    _one_half: Mapping[str, Any] = MappingProxyType({})

    @cached_property
    def image_pipeline(self) -> Any:
        """`AutoPipeline` does not know it."""
        from diffusers import SanaSprintImg2ImgPipeline

        # With a scheduler of its own, as `_of_same_parts`.
        parts = self.pipeline.components | {"scheduler": copy.deepcopy(self.pipeline.scheduler)}
        pipeline = SanaSprintImg2ImgPipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def guided(self, request: ImageRequest) -> bool:
        """Its guidance is embedded."""
        return False

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        text = super().conditions(request, half, shape)
        scale = torch.full([1], request.guidance_scale, dtype=torch.float32)
        scale = scale.to(self.device.torch_device, text["tokens"].dtype)
        return {**text, "guidance": scale * self.network.config.guidance_embeds_scale}

    def shift(self, request: ImageRequest) -> dict[str, Any]:
        """The angles; the one in the middle of two steps is the authors'."""
        middle = 1.3 if request.steps == 2 else None
        return {"max_timesteps": 1.57080, "intermediate_timesteps": middle}

    def start(self, request: ImageRequest, generator: torch.Generator) -> Start:
        """The last angle is the image itself, at which nothing is computed."""
        start = super().start(request, generator)
        return dataclasses.replace(start, timesteps=start.timesteps[:-1])

    def noise(self, request: ImageRequest, generator: torch.Generator) -> torch.Tensor:
        """As wide as the data."""
        return super().noise(request, generator) * self._deviation

    def noised(
        self,
        request: ImageRequest,
        image: torch.Tensor,
        timestep: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        device, vae = self.device.torch_device, self.pipeline.vae
        arguments = self.latents_arguments(request, self.latents_dtype, generator)
        return self.image_pipeline.prepare_latents(
            image.to(device, vae.dtype), timestep, *arguments, None
        )

    @property
    def _deviation(self) -> float:
        return float(self.schedules.base_config["sigma_data"])

    def sourced(self, latents: torch.Tensor) -> torch.Tensor:
        """As wide as the data."""
        return latents * self._deviation

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """The angle as the share of noise that the transformer was trained with."""
        share = self._share(timestep)
        return {"sample": self._input(row, share), "timestep": share}

    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        return network(
            inputs["sample"].to(self.dtype),
            encoder_hidden_states=inputs["tokens"].to(self.dtype),
            encoder_attention_mask=inputs["mask"],
            guidance=inputs["guidance"],
            timestep=inputs["timestep"],
            return_dict=False,
            attention_kwargs=None,
        )[0]

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """The velocity along the arc, from the one along a straight line."""
        share = self._share(row.timesteps[row.calls])
        wide = share.view(-1, 1, 1, 1)
        velocity = (
            (1 - 2 * wide) * self._input(row, share)
            + (1 - 2 * wide + 2 * wide**2) * outputs["positive"]
        ) / torch.sqrt(wide**2 + (1 - wide) ** 2)
        return velocity.float() * self._deviation

    def step(self, row: Row, output: torch.Tensor, timestep: torch.Tensor) -> None:
        """After the last one the image is what was predicted, without new noise."""
        row.latents, denoised = row.scheduler.step(
            output, timestep.reshape(1), row.latents, **row.step_options, return_dict=False
        )
        if row.calls == len(row.timesteps) - 1:
            row.latents = denoised / self._deviation

    def clean(self, seen: Prediction, request: ImageRequest) -> torch.Tensor:
        """x₀ = cos(t)·x - sin(t)·v, where the sample is the network's input."""
        angle = torch.tensor(seen.timestep)
        share = float(self._share(angle))
        sample = seen.sample / math.hypot(share, 1 - share)
        velocity = seen.output / self._deviation
        return torch.cos(angle) * sample - torch.sin(angle) * velocity

    @staticmethod
    def _share(timestep: torch.Tensor) -> torch.Tensor:
        angle = timestep.reshape(1)
        return torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))

    def _input(self, row: Row, share: torch.Tensor) -> torch.Tensor:
        wide = share.view(-1, 1, 1, 1)
        width: torch.Tensor = torch.sqrt(wide**2 + (1 - wide) ** 2)
        return row.latents / self._deviation * width

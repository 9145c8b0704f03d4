"""What the families of flow matching share: schedules by sigmas and shift, x₀ = x - σ·v."""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from worker.engine.families.base import TWO_CALLS, Family, Start, no_step_left
from worker.engine.interface import ImageRequest
from worker.engine.row import Half, Kept, Prediction, Row, Tensors

_TRAINED_TIMESTEPS = 1000


class FlowFamily(Family):
    """A transformer that predicts the velocity from image to noise."""

    patch = 2
    latent_factor: ClassVar[int] = 8
    """Side of a latent in pixels."""
    own_sigmas: ClassVar[bool] = True
    """Whether the pipeline gives its scheduler evenly spaced sigmas of its own."""
    max_shift: ClassVar[float] = 1.15
    """Where the scheduler's config has none."""
    float32_latents: ClassVar[bool] = False
    """Whether latents are in full precision between two ticks, whatever the network's is."""

    @classmethod
    def fault(cls, pipeline: Any) -> str | None:
        """The VAE's factor decides which sizes there are."""
        missing = super().fault(pipeline)
        if missing:
            return missing
        factor = getattr(pipeline, "vae_scale_factor", cls.latent_factor)
        if factor != cls.latent_factor:
            return f"its VAE makes a latent of {factor} pixels, not of {cls.latent_factor}"
        return None

    def _misfit(self, net: Any) -> str | None:
        """What keeps a ControlNet's blocks from adding to this transformer's."""
        mine, its = self.network.config, net.config
        names = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim")
        if any(mine[name] != its[name] for name in (*names, "pooled_projection_dim")):
            return "does not fit this model: it was made for another transformer"
        return None

    def start(self, request: ImageRequest, generator: torch.Generator) -> Start:
        """From noise, or from the initial image's latents under noise."""
        from_image = request.from_image
        pipeline = self.image_pipeline if from_image else self.pipeline
        if request.mask is not None:
            pipeline = self.inpaint_pipeline
        scheduler = self.schedules.make(
            request.scheduler, request.steps, self.sigmas(request), **self.shift(request)
        )
        pipeline.scheduler = scheduler
        if not from_image:
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)
            latents = self.noise(request, generator)
            options = self.step_options(generator)
            return Start(scheduler, scheduler.timesteps, request.steps, latents, options)
        timesteps, steps = pipeline.get_timesteps(
            request.steps, request.strength, self.device.torch_device
        )
        if len(timesteps) == 0:
            raise no_step_left()
        options = self.step_options(generator)
        if request.mask is not None:
            latents, kept = self.repainted(request, timesteps[:1], generator)
            return Start(scheduler, timesteps, steps, latents, options, kept=kept)
        image = self.source(request).to(torch.float32)
        latents = self.noised(request, image, timesteps[:1], generator)
        return Start(scheduler, timesteps, steps, latents, options)

    def step_options(self, generator: torch.Generator) -> dict[str, Any]:
        """What the scheduler's `step` is given besides; most pipelines give it nothing."""
        return {}

    def sigmas(self, request: ImageRequest) -> Any:
        """The noise levels before the shift; None leaves them to the scheduler."""
        if not self.own_sigmas:
            return None
        return np.linspace(1.0, 1 / request.steps, request.steps)

    def shift(self, request: ImageRequest) -> dict[str, float]:
        """`mu`, by which larger images keep more of their schedule at high noise."""
        config = self.schedules.base_config
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", self.max_shift)
        slope = (high - low) / (most - least)
        return {"mu": self.tokens(request) * slope + (low - slope * least)}

    def tokens(self, request: ImageRequest) -> int:
        """Tokens of the image in the transformer."""
        side = self.patch * self.latent_factor
        return (request.height // side) * (request.width // side)

    def noise(self, request: ImageRequest, generator: torch.Generator) -> torch.Tensor:
        """The first latents of an image from text alone."""
        arguments = self.latents_arguments(request, self.latents_dtype, generator)
        return _without_positions(self.pipeline.prepare_latents(*arguments, None))

    def latents_arguments(
        self, request: ImageRequest, dtype: torch.dtype, generator: torch.Generator
    ) -> tuple[Any, ...]:
        """What nearly every `prepare_latents` takes, in this order."""
        size = request.height, request.width
        return 1, self.channels, *size, dtype, self.device.torch_device, generator

    def noised(
        self,
        request: ImageRequest,
        image: torch.Tensor,
        timestep: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The first latents of an image from an image, as diffusers makes them."""
        arguments = self.latents_arguments(request, self.dtype, generator)
        made = self.image_pipeline.prepare_latents(image, timestep, *arguments, None)
        return _without_positions(made).to(self.latents_dtype)

    def repainted(
        self, request: ImageRequest, timestep: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Kept]:
        """The first latents of an image of which a part is repainted, and what of it stays."""
        image, mask = self.masked_image(request)
        latents, noise, clean, *_ = self.inpaint_pipeline.prepare_latents(
            image, timestep, *self.latents_arguments(request, self.dtype, generator)
        )
        return latents.to(self.latents_dtype), Kept(clean, noise, self.latent_mask(mask))

    def latent_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask (1, 1, height, width) with one value for each of the latents' places."""
        height, width = mask.shape[-2:]
        size = (height // self.latent_factor, width // self.latent_factor)
        small = torch.nn.functional.interpolate(mask, size=size)
        return small.to(self.device.torch_device, self.dtype)

    def control_pixels(self, image: Image.Image, request: ImageRequest) -> torch.Tensor:
        """What a ControlNet sees, in -1 … 1."""
        pixels = self.pipeline.image_processor.preprocess(image, **self.fitting(request))
        return pixels.repeat_interleave(1, dim=0)

    def under_noise(
        self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """On the line from image to noise."""
        return scheduler.scale_noise(latents, timestep, noise)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.network.config.in_channels

    @property
    def latents_dtype(self) -> torch.dtype:
        """Of the latents between two ticks."""
        return torch.float32 if self.float32_latents else self.dtype

    def decode(self, row: Row) -> torch.Tensor:
        vae = self.pipeline.vae
        latents = self.spatial(row.latents, row.request).to(vae.dtype)
        return vae.decode(self.unscale(latents), return_dict=False)[0]

    def unscale(self, latents: torch.Tensor) -> torch.Tensor:
        """From the network's latents to the VAE's."""
        config = self.pipeline.vae.config
        return (latents / config.scaling_factor) + config.shift_factor

    def scale(self, latents: torch.Tensor) -> torch.Tensor:
        """And back."""
        config = self.pipeline.vae.config
        return (latents - config.shift_factor) * config.scaling_factor

    def clean(self, seen: Prediction, request: ImageRequest) -> torch.Tensor:
        """x₀ = x - σ·v."""
        sigma = seen.timestep / _TRAINED_TIMESTEPS
        return self.spatial(seen.sample - sigma * seen.output, request)

    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        """Encoded without noise, and scaled."""
        vae = self.pipeline.vae
        return self.scale(vae.encode(image.to(vae.dtype)).latent_dist.mode().float())


class PackedFlowFamily(FlowFamily):
    """Latents packed into tokens, each of 2 × 2."""

    guided_passes = TWO_CALLS  # as diffusers has it: one stacked call differs in the last bits

    @property
    def channels(self) -> int:
        """Before packing."""
        return super().channels // 4

    def latent_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """Packed as the latents are."""
        small = super().latent_mask(mask).repeat(1, self.channels, 1, 1)
        return self.inpaint_pipeline._pack_latents(small, 1, self.channels, *small.shape[-2:])

    def encode(self, text: str, half: Half) -> Tensors:
        """What a single encoder makes of it, not masked."""
        tokens, _ = self.pipeline.encode_prompt(
            prompt=text,
            device=self.encode_device,
            num_images_per_prompt=1,
            max_sequence_length=self.text_tokens,
        )
        return {"tokens": tokens}

    def spatial(self, latents: torch.Tensor, request: ImageRequest) -> torch.Tensor:
        return self.pipeline._unpack_latents(
            latents, request.height, request.width, self.latent_factor
        )

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """The timestep is rounded to the latents' precision before it is divided."""
        return {"sample": row.latents, "timestep": timestep.reshape(1).to(row.latents.dtype)}


def _without_positions(made: Any) -> torch.Tensor:
    """Some pipelines that pack their latents give the positions beside."""
    return made[0] if isinstance(made, tuple) else made

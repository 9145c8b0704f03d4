"""What the families of diffusion over a table of ᾱ share: schedules, scaling, previews."""

from typing import Any

import torch

from shared.core.model_catalog import ModelSpec
from worker.engine.device import Device
from worker.engine.families.base import Family, Start
from worker.engine.interface import ImageRequest
from worker.engine.previews import predicted_latents
from worker.engine.row import Prediction, Row, Tensors
from worker.engine.schedules import Schedules


class DiffusionFamily(Family):
    """A network that predicts noise (or v) at one of a thousand trained noise levels."""

    def __init__(
        self, pipeline: Any, device: Device, spec: ModelSpec, schedules: Schedules | None = None
    ) -> None:
        super().__init__(pipeline, device, spec, schedules)
        self._alphas = pipeline.scheduler.alphas_cumprod
        self._prediction_type = str(pipeline.scheduler.config.prediction_type)

    @classmethod
    def matches(cls, pipeline: Any) -> bool:
        """EDM's schedulers have no table of ᾱ that those on offer could take over."""
        has_table = getattr(pipeline.scheduler, "alphas_cumprod", None) is not None
        return super().matches(pipeline) and has_table

    def start(self, request: ImageRequest, generator: torch.Generator) -> Start:
        """From noise, or from the initial image's latents under noise."""
        scheduler = self._scheduler(request)
        if request.mask is not None or self.takes_mask:
            return self._repainted(request, scheduler, generator)
        from_where = self._from_image if request.from_image else self._from_noise
        steps, timesteps, latents = from_where(request, scheduler, generator)
        self.pipeline.scheduler = scheduler
        options = self.pipeline.prepare_extra_step_kwargs(generator, 0.0)
        return Start(scheduler, timesteps, steps, latents, options)

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """The sample as the scheduler scales it; integers below 2^24 are exact in float32."""
        return {
            "sample": row.scheduler.scale_model_input(row.latents, timestep),
            "timestep": timestep.reshape(1).float(),
        }

    def decode(self, row: Row) -> torch.Tensor:
        vae = self.pipeline.vae
        return vae.decode(self._unscale(row.latents.to(vae.dtype)), return_dict=False)[0]

    def clean(self, seen: Prediction, request: ImageRequest) -> torch.Tensor:
        return predicted_latents(seen, self._alphas, self._prediction_type)

    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        """Encoded without noise, and scaled."""
        vae = self.pipeline.vae
        encoded = vae.encode(image.to(vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return self._scale(latents.float())

    @property
    def takes_mask(self) -> bool:
        """Whether the network reads mask and masked image, as those trained for inpainting do."""
        return False

    def _repainted(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> Start:
        raise NotImplementedError(f"{self.name} does not support inpainting.")

    def _scheduler(self, request: ImageRequest) -> Any:
        return self.schedules.make(request.scheduler, request.steps)

    def _scale(self, latents: torch.Tensor) -> torch.Tensor:
        """From the VAE's latents to the UNet's."""
        return latents * self.pipeline.vae.config.scaling_factor

    def _unscale(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.pipeline.vae.config.scaling_factor

    def _from_noise(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        pipeline = self.pipeline
        pipeline.scheduler = scheduler
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        latents: torch.Tensor = pipeline.prepare_latents(
            1,
            self.network.config.in_channels,
            request.height,
            request.width,
            self.dtype,
            self.device.torch_device,
            generator,
            None,
        )
        return request.steps, scheduler.timesteps, latents

    def _from_image(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        raise NotImplementedError(f"{self.name} does not support image-to-image.")

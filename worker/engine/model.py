"""A loaded Stable Diffusion pipeline as rows see it: prepare, tick, decode.

Built from the pipeline's own public parts, in the order in which its `__call__` uses them, so
that one row alone gives the bits that diffusers gives.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from shared.core.errors import InvalidInput
from worker.engine.backend import Shape
from worker.engine.batch import TickBatch
from worker.engine.device import Device
from worker.engine.interface import ImageRequest
from worker.engine.prompts import PromptEncoder
from worker.engine.row import Row
from worker.engine.schedules import Schedules
from worker.engine.unet import Compile, UnetInputs, UnetOverBuffers

_IDLE_SHAPES = 8
"""Shapes whose buffers stay for the next image of their size."""


class Model:
    """One pipeline on one device, in one precision."""

    def __init__(
        self,
        pipeline: Any,
        family: str,
        device: Device,
        compile_: Compile = "off",
        schedules: Schedules | None = None,
    ) -> None:
        """`schedules` are those of the checkpoint, where the pipeline has had other schedulers."""
        from diffusers import AutoPipelineForImage2Image

        self.pipeline = pipeline
        self.family = family
        self.device = device
        self._compile = compile_
        self._image_pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
        self._image_pipeline.set_progress_bar_config(disable=True)
        self.schedules = schedules or Schedules(pipeline.scheduler.config)
        self._encoder = PromptEncoder(pipeline, device.torch_device)
        self._batches: OrderedDict[Shape, TickBatch] = OrderedDict()
        self._warmed: set[Shape] = set()
        self.dtype = str(pipeline.unet.dtype).removeprefix("torch.")
        self._vae_upcast = family == "sdxl" and bool(pipeline.vae.config.force_upcast)
        self._restore_vae()

    @property
    def guidance_is_embedded(self) -> bool:
        """Whether the UNet takes the guidance scale as an input, and so runs one half only."""
        return self.pipeline.unet.config.time_cond_proj_dim is not None

    def guided(self, request: ImageRequest) -> bool:
        """Whether the request needs both halves."""
        return request.guidance_scale > 1 and not self.guidance_is_embedded

    def prepare(self, request: ImageRequest) -> Row:
        """Encode the texts, set the timesteps, draw the latents: all before the first tick."""
        generator = torch.Generator("cpu").manual_seed(request.seed)
        prompt = self._encoder.encode(request.prompt)
        negative = None
        if self.guided(request):
            negative = self._encoder.encode_negative(request.negative_prompt, prompt)
        strength = request.strength if self.family == "lcm" else None
        scheduler = self.schedules.make(request.scheduler, request.steps, strength)
        if request.init_image is None:
            steps, timesteps, latents = self._from_noise(request, scheduler, generator)
        else:
            steps, timesteps, latents = self._from_image(request, scheduler, generator)
        self.pipeline.scheduler = scheduler
        return Row(
            request=request,
            scheduler=scheduler,
            step_options=self.pipeline.prepare_extra_step_kwargs(generator, 0.0),
            timesteps=timesteps,
            steps=steps,
            latents=latents,
            prompt=prompt,
            negative=negative,
            time_condition=self._time_condition(request),
            dtype=self.dtype,
        )

    def tick(self, shape: Shape, rows: Sequence[Row]) -> None:
        """Advance each row by one UNet call."""
        batch = self._batches.get(shape)
        if batch is None:
            self._forget_idle(_IDLE_SHAPES)
            # Not a method: a cycle would keep the weights until the garbage collector comes.
            allocate = partial(_buffers, self.pipeline, shape, self.compiled(shape))
            batch = TickBatch(shape, allocate, self.device)
            self._batches[shape] = batch
        self._batches.move_to_end(shape)
        batch.tick(rows)

    def compiled(self, shape: Shape) -> Compile:
        """How the UNet runs at this shape: eagerly unless the shape was warmed."""
        return self._compile if shape in self._warmed else "off"

    def will_warm(self, shape: Shape) -> None:
        """Let this shape use graphs or compiled kernels: its first tick may take minutes."""
        self._warmed.add(shape)

    def forget(self, shape: Shape) -> None:
        """Free a shape's buffers."""
        self._batches.pop(shape, None)

    def release_memory(self) -> None:
        """Free the buffers of shapes that nobody uses, and what torch keeps at hand."""
        self._forget_idle(0)
        self.device.release_memory()

    def _forget_idle(self, kept: int) -> None:
        """All but the latest; clients may ask for any size. Warmed shapes stay."""
        idle = [
            shape
            for shape, batch in self._batches.items()
            if batch.idle and shape not in self._warmed
        ]
        for shape in idle[: max(0, len(idle) - kept)]:
            self.forget(shape)

    def leave(self, row: Row) -> None:
        """Free the row's slot."""
        for batch in self._batches.values():
            batch.leave(row)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of one image -> (1, 3, height, width) in about -1 … 1, in the VAE's dtype."""
        vae = self.pipeline.vae
        latents = latents.to(vae.dtype)
        config = vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if self.family == "sdxl" and mean is not None and deviation is not None:
            mean, deviation = (
                torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype)
                for values in (mean, deviation)
            )
            latents = latents * deviation / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        image: torch.Tensor = vae.decode(latents, return_dict=False)[0]
        return image

    def _from_noise(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        pipeline = self.pipeline
        pipeline.scheduler = scheduler
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        latents: torch.Tensor = pipeline.prepare_latents(
            1,
            pipeline.unet.config.in_channels,
            request.height,
            request.width,
            pipeline.unet.dtype,
            self.device.torch_device,
            generator,
            None,
        )
        return request.steps, scheduler.timesteps, latents

    def _from_image(
        self, request: ImageRequest, scheduler: Any, generator: torch.Generator
    ) -> tuple[int, torch.Tensor, torch.Tensor]:
        pipeline = self._image_pipeline
        pipeline.scheduler = scheduler
        device = self.device.torch_device
        image = pipeline.image_processor.preprocess(
            request.init_image, height=request.height, width=request.width
        )
        if self.family == "lcm":  # this family's schedule already knows the strength
            timesteps, steps = scheduler.timesteps, len(scheduler.timesteps)
        else:
            timesteps, steps = pipeline.get_timesteps(request.steps, request.strength, device)
        if len(timesteps) == 0:
            raise InvalidInput("strength times steps leaves no step to run.")
        latents: torch.Tensor = pipeline.prepare_latents(
            image, timesteps[:1], 1, 1, pipeline.unet.dtype, device, generator
        )
        self._restore_vae()
        return steps, timesteps, latents

    def _time_condition(self, request: ImageRequest) -> torch.Tensor | None:
        unet = self.pipeline.unet
        if not self.guidance_is_embedded:
            return None
        scale = torch.tensor(request.guidance_scale - 1).repeat(1)
        embedding: torch.Tensor = self.pipeline.get_guidance_scale_embedding(
            scale, embedding_dim=unet.config.time_cond_proj_dim
        )
        return embedding.to(device=unet.device, dtype=unet.dtype)

    def _restore_vae(self) -> None:
        """Keep SDXL's VAE in float32, where its activations fit; img2img casts it back."""
        if self._vae_upcast:
            self.pipeline.vae.to(dtype=torch.float32)


def _buffers(pipeline: Any, shape: Shape, how: Compile, channels_last: bool) -> UnetOverBuffers:
    inputs = UnetInputs.allocate(shape, pipeline, channels_last)
    return UnetOverBuffers(pipeline.unet, inputs, how)

"""What diffusers' own pipeline makes of a request: the reference that the engine must equal."""

import copy
import inspect
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from shared.core.schedulers import SCHEDULERS
from worker.engine.interface import ImageRequest, Lora

Arguments = dict[str, Any] | None
"""What a family's pipeline is called with besides."""


_ALTERED_AT_THE_END = ("PixArtSigmaPipeline", "SanaSprintPipeline")
"""Pipelines that call nobody after a step, or divide the latents after the last one."""


class Reference:
    """A checkpoint behind diffusers' text-to-image and image-to-image pipelines."""

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype)
        self._from_text = pipeline.to(device)
        self._from_text.set_progress_bar_config(disable=True)
        self._base_config = self._from_text.scheduler.config
        self._loras: set[str] = set()
        self._acting: tuple[Lora, ...] = ()
        self._nets: dict[Path, Any] = {}

    @property
    def pipeline(self) -> Any:
        """Diffusers' own, without the LoRAs of an earlier call, which act on text encoders too."""
        self.set_loras(())
        return self._from_text

    @cached_property
    def _from_image(self) -> Any:
        if type(self._from_text).__name__ == "SanaSprintPipeline":  # unknown to AutoPipeline
            pipeline = diffusers.SanaSprintImg2ImgPipeline(**self._from_text.components)
        else:
            pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(self._from_text)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @cached_property
    def _inpaint(self) -> Any:
        pipeline = diffusers.AutoPipelineForInpainting.from_pipe(self._from_text)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _controlled(self, request: ImageRequest) -> Any:
        """The pipeline of this kind of request with the ControlNets that it names."""
        ending = "Inpaint" if request.mask else "Img2Img" if request.from_image else ""
        name = type(self._from_text).__name__.replace("Inpaint", "")
        name = name.replace("Pipeline", f"ControlNet{ending}Pipeline")
        net_class = {"F": "FluxControlNetModel"}.get(name[0], "ControlNetModel")
        net_class = "SD3ControlNetModel" if "Diffusion3" in name else net_class
        for path in {control.path for control in request.controls} - self._nets.keys():
            self._nets[path] = getattr(diffusers, net_class).from_pretrained(
                path, dtype=self._from_text.dtype
            )
        nets = [self._nets[control.path] for control in request.controls]
        kind = getattr(diffusers, name)
        taken = inspect.signature(kind.__init__).parameters
        arguments = {**self._from_text.components, "requires_safety_checker": False}
        pipeline = kind(
            controlnet=nets if len(nets) > 1 else nets[0],
            **{key: value for key, value in arguments.items() if key in taken},
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def set_loras(self, loras: Sequence[Lora]) -> None:
        """Load those that are not loaded, and have these act alone."""
        if tuple(loras) == self._acting:
            return
        pipeline, self._acting = self._from_text, tuple(loras)
        for lora in loras:
            if lora.name not in self._loras:
                pipeline.load_lora_weights(str(lora.path), adapter_name=lora.name)
                self._loras.add(lora.name)
        if loras:
            pipeline.enable_lora()
            pipeline.set_adapters([lora.name for lora in loras], [lora.scale for lora in loras])
        elif self._loras:
            pipeline.disable_lora()

    def pixels(self, request: ImageRequest, more: Arguments = None) -> NDArray[np.uint8]:
        """(height, width, 3)."""
        (image,) = self._call(request, "pil", more)
        return np.asarray(image)

    def latents_and_pixels(
        self, request: ImageRequest, more: Arguments = None
    ) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        """Both, of one call where the pipeline shows the last latents as it hands them out."""
        if type(self._from_text).__name__ in _ALTERED_AT_THE_END:
            return self.latents(request, more), self.pixels(request, more)
        kept = _Kept()
        pixels = self.pixels(request, {**(more or {}), "callback_on_step_end": kept})
        return kept.latents, pixels

    def together(self, requests: Sequence[ImageRequest]) -> list[Any]:
        """Images from text in one call, which takes all but prompts and seeds from the first."""
        first, pipeline = requests[0], self._from_text
        scheduler_class = getattr(diffusers, SCHEDULERS[first.scheduler].class_name)
        overrides = SCHEDULERS[first.scheduler].overrides
        pipeline.scheduler = scheduler_class.from_config(self._base_config, **overrides)
        images: list[Any] = pipeline(
            prompt=[each.prompt for each in requests],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            width=first.width,
            height=first.height,
            generator=[torch.Generator("cpu").manual_seed(each.seed) for each in requests],
        ).images
        return images

    def latents(self, request: ImageRequest, more: Arguments = None) -> torch.Tensor:
        """The final latents, (1, …)."""
        if type(self._from_text).__name__ != "Flux2KleinPipeline":  # it hands them out unpacked
            latents: torch.Tensor = self._call(request, "latent", more)
            return latents
        kept = _Kept()
        self._call(request, "latent", {**(more or {}), "callback_on_step_end": kept})
        return kept.latents

    def _call(self, request: ImageRequest, output: str, more: Arguments) -> Any:
        self.set_loras(request.loras)
        choice = SCHEDULERS[request.scheduler]
        scheduler_class = getattr(diffusers, choice.class_name)
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": output,
        }
        if "negative_prompt" in inspect.signature(self._from_text.__call__).parameters:
            arguments["negative_prompt"] = request.negative_prompt
        if request.mask is not None:
            pipeline = self._inpaint
            arguments |= {
                "image": request.init_image,
                "mask_image": request.mask.image,
                "strength": request.strength,
                "width": request.width,
                "height": request.height,
            }
            if request.mask.padding is not None:
                arguments["padding_mask_crop"] = request.mask.padding
        elif not request.from_image:
            pipeline = self._from_text
            arguments |= {"width": request.width, "height": request.height}
        else:
            pipeline = self._from_image
            image = request.init_latents
            if image is None:
                image = pipeline.image_processor.resize(
                    request.init_image, height=request.height, width=request.width
                )
            else:  # not all let latents through, although their `prepare_latents` takes them
                pipeline = copy.copy(pipeline)
                pipeline.image_processor = copy.copy(pipeline.image_processor)
                pipeline.image_processor.preprocess = _as_it_is
                pipeline.prepare_image = _as_it_is
            arguments |= {"image": image, "strength": request.strength}
            if "width" in inspect.signature(pipeline.__call__).parameters:
                arguments |= {"width": request.width, "height": request.height}
        if request.controls:
            pipeline = self._controlled(request)
            arguments |= _control_arguments(request, pipeline)
        arguments |= more or {}
        overrides = dict(choice.overrides)
        if choice.shift is not None:
            base = self._base_config
            overrides[choice.shift] = base["shift"] if "shift" in base else base["flow_shift"]
        pipeline.scheduler = scheduler_class.from_config(self._base_config, **overrides)
        if request.controls:  # some take less than their like without ControlNets
            taken = inspect.signature(pipeline.__call__).parameters
            arguments = {name: value for name, value in arguments.items() if name in taken}
        return pipeline(**arguments).images


class _Kept:
    """Called by a pipeline after each step: what the last one left."""

    latents: torch.Tensor

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        self.latents = tensors["latents"].clone()
        return tensors


def _control_arguments(request: ImageRequest, pipeline: Any) -> dict[str, Any]:
    torch.manual_seed(request.seed)  # SD3's encodes its image with noise of no generator
    controls, called = request.controls, inspect.signature(pipeline.__call__).parameters
    values: dict[str, list[Any]] = {
        "control_image" if "control_image" in called else "image": [one.image for one in controls],
        "controlnet_conditioning_scale": [one.scale for one in controls],
        "control_guidance_start": [one.start for one in controls],
        "control_guidance_end": [one.end for one in controls],
    }
    each = {name: value if len(value) > 1 else value[0] for name, value in values.items()}
    return {**each, "width": request.width, "height": request.height}


def _as_it_is(image: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return image


@lru_cache
def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Reference:
    """The reference of a checkpoint, loaded once."""
    return Reference(folder, dtype)

"""What diffusers' own pipeline makes of a request: the reference that the engine must equal."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.core.schedulers import SCHEDULERS
from worker.engine.interface import ImageRequest


class Reference:
    """A checkpoint behind diffusers' text-to-image and image-to-image pipelines."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image

        self._from_text = AutoPipelineForText2Image.from_pretrained(folder)
        self._from_image = AutoPipelineForImage2Image.from_pipe(self._from_text)
        for pipeline in (self._from_text, self._from_image):
            pipeline.set_progress_bar_config(disable=True)
        self._base_config = self._from_text.scheduler.config
        self.is_lcm = type(self._from_text).__name__ == "LatentConsistencyModelPipeline"

    def pixels(self, request: ImageRequest) -> NDArray[np.uint8]:
        """(height, width, 3)."""
        (image,) = self._call(request, "pil")
        return np.asarray(image)

    def latents(self, request: ImageRequest) -> torch.Tensor:
        """The final latents, (1, channels, h, w)."""
        latents: torch.Tensor = self._call(request, "latent")
        return latents

    def _call(self, request: ImageRequest, output: str) -> Any:
        import diffusers

        choice = SCHEDULERS[request.scheduler]
        scheduler_class = getattr(diffusers, choice.class_name)
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": output,
        }
        if not self.is_lcm:
            arguments["negative_prompt"] = request.negative_prompt
        if request.init_image is None:
            pipeline = self._from_text
            arguments |= {"width": request.width, "height": request.height}
        else:
            pipeline = self._from_image
            image = pipeline.image_processor.resize(
                request.init_image, height=request.height, width=request.width
            )
            arguments |= {"image": image, "strength": request.strength}
        pipeline.scheduler = scheduler_class.from_config(self._base_config, **choice.overrides)
        return pipeline(**arguments).images


@lru_cache
def reference(folder: Path) -> Reference:
    """The reference of a checkpoint, loaded once."""
    return Reference(folder)

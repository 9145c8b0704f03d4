"""Any other diffusers pipeline: its ordinary call, one image at a time, advanced step by step."""

import copy
import inspect
import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import InvalidInput, ModelUnavailable, NanOutput
from shared.core.prompt_weights import PromptSyntax
from shared.core.schedulers import SCHEDULERS, StrengthRule, steps_to_run
from worker.engine.backend import DecodedImage, Preview, Shape, Work, done
from worker.engine.device import measured
from worker.engine.families.base import no_step_left
from worker.engine.interface import (
    ImageRequest,
    ModelFacts,
    RunFacts,
    TickTime,
    WarmUpReport,
    check_mask,
)
from worker.engine.loaded import LoadedBackend, LoadedModel
from worker.engine.pipeline_run import PipelineRun
from worker.engine.prompts import Truncation, clip_reader
from worker.engine.warm_up import trial_request


class PipelineBackend(LoadedBackend):
    """A pipeline whose inside the engine does not know. A started image ends before the next."""

    exclusive = True
    variant_per_text = False
    runs_ahead = 0

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded)
        self._pipeline = loaded.pipeline
        self._scheduler = loaded.pipeline.scheduler
        self._image_pipeline = _image_pipeline(loaded.pipeline)
        self._truncation = Truncation(map(clip_reader, _clip_tokenizers(loaded.pipeline)))
        self._parameters = inspect.signature(self._pipeline.__call__).parameters
        self._factor = _size_factor(loaded.pipeline)
        self._is_lcm = type(loaded.pipeline).__name__ == "LatentConsistencyModelPipeline"
        self._rule: StrengthRule = "all" if self._is_lcm else rule_of(self._image_pipeline)

    @property
    def model(self) -> ModelFacts:
        family = {"up": "flow", "down": "pipeline", "all": "lcm"}[self._rule]
        return self._loaded.facts(family, batch_size=1)

    def warm_up(self) -> WarmUpReport:
        """Make a short image at every configured size."""
        started, spec = time.monotonic(), self._loaded.spec
        table = []
        for width, height in spec.sizes_to_warm:
            request = trial_request(self._loaded, width, height, steps=2)
            begun = time.perf_counter()
            pixels = self._call(self._pipeline, request).finish()
            if pixels.shape != (height, width, 3):
                raise ModelUnavailable(
                    f"Model {spec.name!r} made an image of {pixels.shape} for {width}x{height}."
                )
            table.append(TickTime(width, height, 1, (time.perf_counter() - begun) / 2))
        return WarmUpReport(time.monotonic() - started, spec.sizes_to_warm, 1, tuple(table))

    def check(self, request: ImageRequest) -> None:
        """Refuse what the pipeline's call has no parameter for."""
        if request.scheduler not in SCHEDULERS:
            raise InvalidInput(f"There is no scheduler named {request.scheduler!r}.")
        if self._is_lcm and request.scheduler != "lcm":
            raise InvalidInput("A latent consistency model runs with the scheduler lcm only.")
        if request.width % self._factor or request.height % self._factor:
            raise InvalidInput(f"Width and height must be multiples of {self._factor} pixels.")
        takes_no_negative = request.negative_prompt and "negative_prompt" not in self._parameters
        for name, asked in (
            ("LoRAs", request.loras),
            ("ControlNets", request.controls),
            ("reference images", request.references),
            ("prompt weights", request.prompt_syntax == "weighted"),
            ("long prompts", request.long_prompt),
            ("negative prompts", takes_no_negative),
        ):
            if asked:
                raise InvalidInput(f"Model {self.model.name!r} does not support {name}.")
        if request.from_image != (request.strength is not None):
            raise InvalidInput("An initial image and a strength go together.")
        if request.from_image and self._image_pipeline is None:
            raise InvalidInput(f"Model {self.model.name!r} does not support image-to-image.")
        check_mask(request, False, self.model.name)
        upscalers = {request.upscaler, request.hires.upscaler if request.hires else "lanczos"}
        if "latent" in upscalers:
            raise InvalidInput(f"Model {self.model.name!r} upscales pixels only, with lanczos.")
        if self.steps_of(request) < 1:
            raise no_step_left()

    loras: ClassVar[dict[str, str]] = {}

    def load_weights(self, request: ImageRequest) -> object:
        """There are none."""

    def shape_of(self, request: ImageRequest) -> Shape:
        """One row, whatever was asked for."""
        return Shape(request.width, request.height, batch_size=1)

    def most(self, shape: Shape) -> int:
        return shape.batch_size

    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[PipelineRun, Work[None]]:
        """Nothing runs before the first tick."""
        return self._call(self._pipeline, request), done(None, 0.0)

    def tick(
        self, shape: Shape, rows: Sequence[PipelineRun], alive: Callable[[], None] = lambda: None
    ) -> Work[int]:
        """Let the pipeline run to the end of its next step.

        Raises:
            InvalidInput: it refuses the request by a rule of its own, before its first step.
        """
        (run,) = rows
        begin = self._device.mark()
        try:
            self._device.run("tick", run.advance)
        except ValueError as error:  # what diffusers' pipelines raise for what they do not take
            if run.step:
                raise
            raise InvalidInput(f"Model {self.model.name!r} refuses this: {error}") from None
        return measured(lambda: 1, begin, self._device.mark())

    def preview(self, row: PipelineRun) -> Preview | None:
        """Latents of unknown kinds cannot be shown."""
        return None

    def decode(self, row: PipelineRun) -> Work[DecodedImage]:
        """Let the pipeline run to its end.

        Raises:
            InvalidInput: it made an image of another size than was asked for.
        """
        begin = self._device.mark()
        image = self._device.run("decode", row.finish)
        width, height = row.size
        if image.shape[:2] != (height, width):
            made = f"{image.shape[1]}x{image.shape[0]}"
            raise InvalidInput(
                f"Model {self.model.name!r} makes {made} of {width}x{height} pixels."
            )
        return measured(lambda: _image(image), begin, self._device.mark())

    def upscale(self, row: PipelineRun, width: int, height: int) -> Work[object]:
        """Refused by `check`."""
        raise NotImplementedError("Latents of unknown kinds cannot be upscaled.")

    def rescue(
        self, request: ImageRequest, row: PipelineRun, alive: Callable[[], None]
    ) -> tuple[DecodedImage, str]:
        """The whole pipeline once more, in float32."""
        if self._loaded.dtype == "float32":
            raise NanOutput("The model gave NaN or an all-black image, in full precision.")
        upcast = copy.copy(self._pipeline)
        for name, part in self._pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                setattr(upcast, name, copy.deepcopy(part).float())
        image = _image(_run(self._call(upcast, request), alive))
        if request.hires is not None:
            second = request.second_pass(image=Image.fromarray(image.pixels))
            image = _image(_run(self._call(upcast, second), alive))
        if not image.sound:
            raise NanOutput("The model gave NaN or an all-black image, in full precision too.")
        row.rescued, row.dtype = True, "float32"
        return image, "unsound: made again in float32 throughout"

    def facts(self, row: PipelineRun, shape: Shape, notes: tuple[str, ...]) -> RunFacts:
        return self._loaded.run_facts(row.scheduler, shape.batch_size, notes + row.notes, row.dtype)

    def discard(self, row: PipelineRun) -> None:
        """End the pipeline's call if it is still under way."""
        row.abandon()

    def shrink(self, shape: Shape) -> Shape | None:
        """There is only one row."""
        return None

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        """What CLIP tokenizers cut off; encoders of other kinds are not looked at."""
        return self._truncation.of(prompt)

    def _call(self, pipeline: Any, request: ImageRequest) -> PipelineRun:
        scheduler, notes = self._scheduler_for(request.scheduler)
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "np",
        }
        if request.negative_prompt is not None:
            arguments["negative_prompt"] = request.negative_prompt
        if request.init_image is None:
            arguments |= {"width": request.width, "height": request.height}
        else:
            own = pipeline is self._pipeline  # else its parts are upcast
            pipeline = self._image_pipeline if own else _image_pipeline(pipeline)
            size = (request.width, request.height)
            image = request.init_image.resize(size, Image.Resampling.LANCZOS)
            arguments |= {"image": image, "strength": request.strength}
            if "width" in inspect.signature(pipeline.__call__).parameters:  # else the image's
                arguments |= {"width": request.width, "height": request.height}
        pipeline.scheduler = scheduler
        return PipelineRun(
            pipeline,
            arguments,
            size=(request.width, request.height),
            steps=self.steps_of(request),
            scheduler=scheduler,
            notes=notes,
            dtype=self._loaded.dtype,
        )

    def steps_of(self, request: ImageRequest) -> int:
        """By the rule of its image-to-image pipeline."""
        return steps_to_run(request.steps, request.strength, self._rule)

    def _scheduler_for(self, name: str) -> tuple[Any, tuple[str, ...]]:
        """The scheduler of that name if it fits the pipeline, else the checkpoint's own."""
        choice, own = SCHEDULERS[name], self._scheduler
        for scheduler_class in getattr(own, "compatibles", []):
            if scheduler_class.__name__ == choice.class_name:
                return scheduler_class.from_config(own.config, **choice.overrides), ()
        note = f"scheduler: {name} does not fit this model; its own {type(own).__name__} was used"
        return copy.deepcopy(own), (note,)


def rule_of(pipeline: Any) -> StrengthRule:
    """How an image-to-image pipeline cuts its schedule, by its own `get_timesteps`."""
    get = getattr(type(pipeline), "get_timesteps", None)
    if get is None:
        return "down"
    scheduler = SimpleNamespace(timesteps=torch.arange(10), order=1)
    known = {"num_inference_steps": 10, "strength": 0.25, "device": None}
    names = inspect.signature(get).parameters.keys() & known.keys()
    arguments = {name: known[name] for name in names}
    _, steps = get(SimpleNamespace(scheduler=scheduler), **arguments)
    return "up" if steps == 3 else "down"


def _image_pipeline(pipeline: Any) -> Any | None:
    from diffusers import AutoPipelineForImage2Image

    try:
        image_pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
    except ValueError:
        return None
    image_pipeline.set_progress_bar_config(disable=True)
    return image_pipeline


def _size_factor(pipeline: Any) -> int:
    """What the pipeline rounds or refuses sizes by, in pixels, as far as it says.

    Flux and its like have it in their image processor (two latents a patch), Stable Diffusion 3 in
    its patch size.
    """
    processor = getattr(getattr(pipeline, "image_processor", None), "config", None)
    factor = getattr(pipeline, "vae_scale_factor", 1)
    return math.lcm(
        getattr(processor, "vae_scale_factor", 1), factor * getattr(pipeline, "patch_size", 1)
    )


def _clip_tokenizers(pipeline: Any) -> list[Any]:
    parts = (getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [part for part in parts if type(part).__name__.startswith("CLIPTokenizer")]


def _run(run: PipelineRun, alive: Callable[[], None]) -> NDArray[np.float32]:
    """All of a call at once."""
    try:
        while not run.finished:
            run.advance()
            alive()
    except BaseException:
        run.abandon()
        raise
    return run.finish()


def _image(image: NDArray[np.float32]) -> DecodedImage:
    """(height, width, 3) in 0 … 1, rounded to bytes as diffusers does it."""
    sound = bool(np.isfinite(image).all())
    pixels = (np.nan_to_num(image) * 255).round().astype(np.uint8)
    return DecodedImage(pixels, sound and bool(pixels.any()))

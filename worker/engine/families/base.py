"""What is special of a model family, behind one interface: the loop and the batch know no other.

A family is built from the pipeline's own public parts, called in the order in which diffusers'
pipeline calls them, so that one row alone gives the bits that diffusers gives.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import InvalidInput
from shared.core.families import FAMILIES, FamilyFacts
from shared.core.model_catalog import ModelSpec
from shared.core.prompt_weights import PromptSyntax
from worker.engine.backend import Shape
from worker.engine.controls import Residuals
from worker.engine.device import Device
from worker.engine.interface import ImageRequest
from worker.engine.prompts import PromptCache, Reader, clip_reader
from worker.engine.references import IpAdapter, References
from worker.engine.row import Half, Kept, Prediction, Row, Tensors
from worker.engine.schedules import Schedules

Pass = tuple[Half, ...]
"""One call of the network in a tick: the halves that are stacked in its batch, in order."""

POSITIVE: tuple[Pass, ...] = (("positive",),)
STACKED: tuple[Pass, ...] = (("negative", "positive"),)
TWO_CALLS: tuple[Pass, ...] = (("positive",), ("negative",))


@dataclass(frozen=True)
class Start:
    """A row's schedule and its first latents."""

    scheduler: Any
    timesteps: torch.Tensor
    """(calls,)."""
    steps: int
    """Inference steps that these calls make up."""
    latents: torch.Tensor
    """(1, …), as the network takes them."""
    step_options: dict[str, Any] = field(default_factory=dict)
    """What the scheduler's `step` takes besides."""
    conditions: Tensors = field(default_factory=dict)
    """What the network reads besides because of the initial image; both halves alike."""
    kept: Kept | None = None
    """What of the initial image stays."""


class Family(ABC):
    """One pipeline of a family on one device, in one precision."""

    name: ClassVar[str]
    """Its key in `shared.core.families.FAMILIES`."""
    network_part: ClassVar[str] = "transformer"
    """The component that a tick calls."""
    patch: ClassVar[int] = 1
    """Latents a side of what the network takes as one: sizes are multiples of it."""
    guided_passes: ClassVar[tuple[Pass, ...]] = STACKED
    """The network's calls in a tick of guided rows; most pipelines have one, the negative halves
    first."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """The components without which no text can be encoded."""
    encodes_halves_alike: ClassVar[bool] = True
    """Whether a text has the same embedding as either half."""
    default_text_tokens: ClassVar[int] = 512
    """See `text_tokens`."""
    host_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs that `forward` reads on the host."""
    capturable: ClassVar[bool] = True
    """Whether `forward` is the same work at one shape, whatever its inputs hold."""
    variant_per_text: ClassVar[bool] = False
    """Whether hardly any two texts have the same variant."""
    sizes_agree: ClassVar[bool] = True
    """Whether a row may have the same bits at several batch sizes; the warm-up finds out."""
    half_precision: ClassVar[Literal["float16", "bfloat16"]] = "bfloat16"
    """What `dtype = "auto"` means on a GPU."""
    shared_modules: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the names of the network's modules whose input is not one element a row: LoRAs
    that change them are refused."""
    control_class: ClassVar[str | None] = None
    """Diffusers' class of its ControlNets."""
    shares_residuals: ClassVar[bool] = False
    """Whether what ControlNets add to a tick's first call is added to its others, too."""
    float32_rescue: ClassVar[bool] = False
    """Whether an unsound image is made again with the whole model copied to float32."""

    def __init__(
        self, pipeline: Any, device: Device, spec: ModelSpec, schedules: Schedules | None = None
    ) -> None:
        """`schedules` are those of the checkpoint, where the pipeline has had other schedulers."""
        self.pipeline = pipeline
        self.device = device
        self.spec = spec
        self.schedules = schedules or Schedules(pipeline.scheduler.config, device.torch_device)
        self.prompts = PromptCache()
        self.encoders_are: Hashable = None
        """What else an embedding depends on: the LoRAs that act on the encoders."""
        self.ip_adapter: IpAdapter | None = None
        """Reads reference images; set where the model has one."""

    # --- choosing -------------------------------------------------------------------------------

    @classmethod
    def matches(cls, pipeline: Any) -> bool:
        """Whether the pipeline claims to be of this family."""
        facts = FAMILIES[cls.name]
        return type(pipeline).__name__ in (facts.pipeline, facts.inpaint_checkpoint)

    @classmethod
    def fault(cls, pipeline: Any) -> str | None:
        """What is wrong with a pipeline that claims to be of this family, as half a sentence."""
        for name in (*cls.encoders, cls.network_part, "vae"):
            if getattr(pipeline, name, None) is None:
                return f"it has no {name}"
        return None

    @property
    def facts(self) -> FamilyFacts:
        """What jobs may ask for."""
        return FAMILIES[self.name]

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether a negative prompt has any meaning."""
        return self.facts.negative_prompt or self.spec.true_guidance_scale is not None

    def true_scale(self, request: ImageRequest) -> float | None:
        """The job's scale of true guidance, or the model's."""
        asked = request.true_cfg_scale
        return self.spec.true_guidance_scale if asked is None else asked

    @property
    def network(self) -> Any:
        """The module that a tick calls."""
        return getattr(self.pipeline, self.network_part)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.network.dtype

    @cached_property
    def image_pipeline(self) -> Any:
        from diffusers import AutoPipelineForImage2Image

        return self._of_same_parts(AutoPipelineForImage2Image)

    @cached_property
    def inpaint_pipeline(self) -> Any:
        from diffusers import AutoPipelineForInpainting

        return self._of_same_parts(AutoPipelineForInpainting)

    def _of_same_parts(self, kind: Any) -> Any:
        # With a scheduler of its own: a new pipeline corrects its scheduler's config, and the one
        # at hand is that of a row, which may be in flight.
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        pipeline = kind.from_pipe(self.pipeline, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def guided(self, request: ImageRequest) -> bool:
        """Whether the request needs both halves."""
        return request.guidance_scale > 1

    def guidance(self, request: ImageRequest) -> float:
        """How far to go from the negative half to the positive one."""
        return request.guidance_scale

    def variant(self, request: ImageRequest, rows: int) -> Hashable:
        """What rows of one tick must agree on, besides size and number; opaque to the loop."""
        return self.guided(request)

    def halves(self, request: ImageRequest) -> tuple[Half, ...]:
        """Those that the request needs."""
        return ("positive", "negative") if self.guided(request) else ("positive",)

    def passes(self, shape: Shape) -> tuple[Pass, ...]:
        """The network's calls in one tick."""
        return self.guided_passes if shape.variant else POSITIVE

    # --- preparing ------------------------------------------------------------------------------

    def conditions(self, request: ImageRequest, half: Half, shape: Shape) -> Tensors:
        """What the network reads besides latents and timestep: the same for all of a row's ticks.

        Each tensor is (1, …). By default the text alone.
        """
        return self.embedding(request, half)

    def text(self, request: ImageRequest, half: Half) -> str:
        """What a half reads: without a negative prompt the empty text."""
        return request.prompt if half == "positive" else request.negative_prompt or ""

    def embedding(self, request: ImageRequest, half: Half) -> Tensors:
        """That text as the network reads it."""
        text = self.text(request, half)
        role = "" if self.encodes_halves_alike else half
        return self.encoded(text, role, lambda: self.encode(text, half))

    @abstractmethod
    def encode(self, text: str, half: Half) -> Tensors:
        """Call the text encoders, as the pipeline does for one prompt."""

    @property
    def text_tokens(self) -> int:
        """The tokens to which texts are cut or padded, where that is for the model to say."""
        return self.spec.text_tokens or self.default_text_tokens

    def readers(self) -> list[Reader]:
        """The tokenizers through which a prompt is read as a whole."""
        names = ("tokenizer", "tokenizer_2")
        tokenizers = [getattr(self.pipeline, name, None) for name in names]
        return [clip_reader(tokenizer) for tokenizer in tokenizers if tokenizer is not None]

    def cut(self, prompt: str, syntax: PromptSyntax, is_long: bool) -> str | None:
        """The end of a weighted or long prompt that is not read. Any thread."""
        raise NotImplementedError(f"{self.name} reads plain prompts only.")

    def constants(self, shape: Shape) -> Tensors:
        """Inputs that belong to the shape and not to any row."""
        return {}

    @abstractmethod
    def start(self, request: ImageRequest, generator: torch.Generator) -> Start:
        """Set the timesteps and draw the latents, all before the first tick."""

    def source(self, request: ImageRequest) -> torch.Tensor:
        """The initial image, or its latents, as the image-to-image pipeline takes it."""
        if request.init_latents is not None:
            return request.init_latents
        return self.image_pipeline.image_processor.preprocess(
            request.init_image, height=request.height, width=request.width
        )

    def encoded(self, text: str, role: str, encode: Callable[[], Tensors]) -> Tensors:
        """A text's embedding, from the cache where it is there.

        Each text is encoded by itself, as diffusers does for one prompt, so cached and fresh
        embeddings have the same bits.
        """
        key = (text, role, self.encoders_are, self.device.cpu_threads)
        return self.prompts.get(key, lambda: self._encode_in_place(encode))

    def attended(self, request: ImageRequest, halves: int) -> References:
        """What of its reference images a row attends to; what counts nothing is left out."""
        adapter = self.ip_adapter
        looked_at = [reference for reference in request.references if reference.scale != 0]
        if not looked_at:
            return ()
        if adapter is None:
            raise InvalidInput(f"Model {self.spec.name!r} does not support reference images.")
        where = self.device.torch_device, self.encode_device
        found = []
        for reference in looked_at:
            encode = partial(adapter.encode, reference, halves > 1, *where)
            key = ("reference", reference.sha256, halves, self.device.cpu_threads)
            tensors = self.prompts.get(key, encode)
            found.append((tensors, reference.scale))
        return tuple(found)

    @property
    def encode_device(self) -> torch.device:
        """Where texts are encoded."""
        on_cpu = self.spec.text_encoder == "cpu"
        return torch.device("cpu") if on_cpu else self.device.torch_device

    def _encode_in_place(self, encode: Callable[[], Tensors]) -> Tensors:
        """Bring the encoders over and back, where the model is declared so."""
        come_and_go = self.spec.text_encoder == "offload" and self.spec.offload == "none"
        parts = self.pipeline.components.items() if come_and_go else ()
        encoders = [part for name, part in parts if name.startswith("text_encoder") and part]
        try:
            for encoder in encoders:
                encoder.to(self.encode_device)
            device = self.device.torch_device
            return {name: tensor.to(device) for name, tensor in encode().items()}
        finally:
            for encoder in encoders:
                encoder.to("cpu")

    def masked_image(self, request: ImageRequest) -> tuple[torch.Tensor, torch.Tensor]:
        """The initial image in -1 … 1, (1, 3, height, width), and the mask as zeros and ones,
        (1, 1, height, width); of both only the region around the mask where the request has it so.

        Without a mask all is repainted, and an image that is not there is black.
        """
        pipeline, size = self.inpaint_pipeline, (request.width, request.height)
        start = request.init_image or Image.new("RGB", size)
        if request.mask is not None and request.mask.start is not None:
            start = request.mask.start
        white = request.mask.image if request.mask else Image.new("L", size, 255)
        options = self.fitting(request)
        image = pipeline.image_processor.preprocess(start, **options)
        mask = pipeline.mask_processor.preprocess(white, **options)
        return image.to(torch.float32), mask

    def fitting(self, request: ImageRequest) -> dict[str, Any]:
        """How image processors bring an image to the request's size; of a region around a mask only
        that."""
        options: dict[str, Any] = {"height": request.height, "width": request.width}
        region = self.region(request)
        if region is not None:
            options |= {"crops_coords": region, "resize_mode": "fill"}
        return options

    def region(self, request: ImageRequest) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of what is made of a request with padding around its mask."""
        if request.mask is None or request.mask.padding is None:
            return None
        return self.inpaint_pipeline.mask_processor.get_crop_region(
            request.mask.image, request.width, request.height, pad=request.mask.padding
        )

    # --- ticking --------------------------------------------------------------------------------

    def dynamic(self, row: Row, timestep: torch.Tensor) -> Tensors:
        """What the network reads of a row in one tick, both halves alike; `sample` is among it."""
        return {"sample": row.latents, "timestep": timestep.reshape(1)}

    @abstractmethod
    def forward(self, network: Any, inputs: Tensors, shape: Shape) -> torch.Tensor:
        """Call the network over a whole batch: (n, …), n being the rows times the halves."""

    def combine(self, row: Row, outputs: Mapping[Half, torch.Tensor]) -> torch.Tensor:
        """The row's prediction from its halves: https://arxiv.org/abs/2207.12598.

        A tensor of its own: schedulers keep earlier outputs, and the next tick may reuse the
        network's memory.
        """
        positive = outputs["positive"]
        if "negative" not in outputs:
            return positive.clone()
        negative = outputs["negative"]
        return negative + self.guidance(row.request) * (positive - negative)

    def step(self, row: Row, output: torch.Tensor, timestep: torch.Tensor) -> None:
        """The row's own scheduler step."""
        row.latents = row.scheduler.step(
            output, timestep, row.latents, **row.step_options, return_dict=False
        )[0]
        kept = row.kept
        if kept is None:
            return
        image, following = kept.image, row.timesteps[row.calls + 1 : row.calls + 2]
        if len(following):
            image = self.kept_under_noise(row.scheduler, kept, following)
        row.latents = (1 - kept.mask) * image + kept.mask * row.latents

    def under_noise(
        self, scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Clean latents as they are at a timestep, (1,)."""
        return scheduler.add_noise(latents, noise, timestep)

    def kept_under_noise(self, scheduler: Any, kept: Kept, timestep: torch.Tensor) -> torch.Tensor:
        """The initial image as it is at a timestep, (1,), between two ticks.

        `add_noise` copies its tables to where the latents are, which stops the host until the
        device is idle. Asked for one and zero on the host, it gives its two factors; they have the
        latents' precision, so that the bits are those of a call with the latents.
        """
        scheduler = copy.copy(scheduler)
        vars(scheduler).update(kept.tables)
        one = torch.eye(2, dtype=kept.image.dtype)
        factors = self.under_noise(scheduler, one[:, :1], one[:, 1:], timestep)
        return factors[0, 0] * kept.image + factors[1, 0] * kept.noise

    # --- ControlNets ----------------------------------------------------------------------------

    def control_fault(self, network: Any) -> str | None:
        """Why a ControlNet's network does not fit, as half a sentence."""
        raise NotImplementedError(f"{self.name} does not support ControlNets.")

    def control_generator(
        self, request: ImageRequest, generator: torch.Generator
    ) -> torch.Generator:
        """Where the noise of images that ControlNets have encoded comes from: the row's own."""
        return generator

    def control_condition(
        self, network: Any, image: Image.Image, request: ImageRequest, generator: torch.Generator
    ) -> torch.Tensor:
        """An image as a ControlNet takes it: (1, …), for each half alike, or (halves, …)."""
        raise NotImplementedError(f"{self.name} does not support ControlNets.")

    def control(self, network: Any, inputs: Tensors, condition: torch.Tensor) -> Residuals:
        """Call a ControlNet over a whole batch, at scale 1."""
        raise NotImplementedError(f"{self.name} does not support ControlNets.")

    def controlled(self, network: Any, inputs: Tensors, residuals: Residuals) -> torch.Tensor:
        """`forward`, with what ControlNets add."""
        raise NotImplementedError(f"{self.name} does not support ControlNets.")

    # --- upscaling ------------------------------------------------------------------------------

    def upscaled(self, row: Row, width: int, height: int) -> torch.Tensor:
        """A finished row's latents at another size in pixels, as `source` gives them."""
        request = row.request
        latents = self.spatial(row.latents, request)
        rows, columns = latents.shape[-2:]
        size = height * rows // request.height, width * columns // request.width
        return self.sourced(_interpolated(latents, size))

    def upscaled_image(self, request: ImageRequest) -> torch.Tensor:
        """The initial image's latents, encoded at its own size, at the request's."""
        image = request.init_image
        if image is None:
            raise InvalidInput("Upscaling needs an initial image.")
        pixels = self.image_pipeline.image_processor.preprocess(
            image, height=image.height, width=image.width
        )
        latents = self.latents_of(pixels.to(self.device.torch_device))
        rows, columns = latents.shape[-2:]
        height, width = pixels.shape[-2:]
        size = request.height * rows // height, request.width * columns // width
        return self.sourced(_interpolated(latents, size))

    def spatial(self, latents: torch.Tensor, request: ImageRequest) -> torch.Tensor:
        """The network's latents as (1, channels, h, w)."""
        return latents

    def sourced(self, latents: torch.Tensor) -> torch.Tensor:
        """An image's latents (1, channels, h, w) as the image-to-image pipeline takes them."""
        return latents

    # --- ending ---------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, row: Row) -> torch.Tensor:
        """(1, 3, height, width) in about -1 … 1, in the VAE's dtype."""

    def finished(self, pixels: NDArray[np.uint8], request: ImageRequest) -> NDArray[np.uint8]:
        """The image of a request with a mask in its place in the initial image."""
        mask, start = request.mask, request.init_image
        if mask is None or start is None:
            return pixels
        image, region = Image.fromarray(pixels), self.region(request)
        if region is not None:
            processor = self.inpaint_pipeline.image_processor
            return np.asarray(processor.apply_overlay(mask.image, start, image, region))
        return np.asarray(Image.composite(image, start, mask.image)) if mask.preserve else pixels

    @abstractmethod
    def clean(self, seen: Prediction, request: ImageRequest) -> torch.Tensor:
        """The clean latents that a call points to, (1, channels, h, w), for a preview."""

    @abstractmethod
    def latents_of(self, image: torch.Tensor) -> torch.Tensor:
        """The latents of an image (1, 3, height, width) in -1 … 1, as `clean` gives them."""


def _interpolated(latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(1, channels, *size): bilinear, as Automatic1111's upscaler "Latent" has it."""
    return torch.nn.functional.interpolate(latents, size=size, mode="bilinear")


def no_step_left() -> InvalidInput:
    """Strength and steps that leave nothing to run."""
    return InvalidInput("strength times steps leaves no step to run.")


def per_channel(values: Sequence[float], latents: torch.Tensor) -> torch.Tensor:
    """A number for each channel, shaped for (1, channels, h, w) and of the latents' kind."""
    return torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype)

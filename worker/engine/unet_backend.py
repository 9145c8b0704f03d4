"""The batched backend: Stable Diffusion 1.x, 2.x, XL and their LCM and Turbo kinds, row by row."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from shared.core.errors import InvalidInput
from shared.core.schedulers import SCHEDULERS, StrengthRule, steps_to_run
from worker.engine.backend import Picture, Preview, Shape, Work
from worker.engine.device import Device, Measured, WorkKind
from worker.engine.interface import ImageRequest, ModelFacts, RunFacts, WarmUpReport
from worker.engine.loaded import LoadedModel
from worker.engine.model import Model
from worker.engine.pictures import start_download
from worker.engine.previews import PreviewMap, predicted_latents
from worker.engine.prompts import Truncation
from worker.engine.rescue import rescue
from worker.engine.row import Row
from worker.engine.warm_up import warm_up

T = TypeVar("T")

_FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "LatentConsistencyModelPipeline": "lcm",
}


def family_of(pipeline: Any) -> str | None:
    """The family that the batched backend serves, or None.

    Beside the class, the parts must be of the usual kind: a UNet that takes the VAE's latents and
    nothing else from an image, embeddings that come from the text alone (plus SDXL's sizes), and a
    scheduler whose noise levels are a table of ᾱ, which every scheduler on offer can take over.
    EDM's schedulers, and those of flow matching, have no such table.
    """
    family = _FAMILIES.get(type(pipeline).__name__)
    unet: Any = getattr(pipeline, "unet", None)
    vae: Any = getattr(pipeline, "vae", None)
    if family is None or type(unet).__name__ != "UNet2DConditionModel":
        return None
    embeddings = ("text_time",) if family == "sdxl" else (None, "text")
    usual = (
        type(vae).__name__ in ("AutoencoderKL", "AutoencoderTiny")
        and unet.config.in_channels == vae.config.latent_channels
        and unet.config.class_embed_type is None
        and unet.config.addition_embed_type in embeddings
        and getattr(pipeline, "text_encoder", None) is not None
        and getattr(pipeline.scheduler, "alphas_cumprod", None) is not None
    )
    return family if usual else None


class UnetBackend:
    """Rows over one UNet."""

    exclusive = False

    def __init__(self, loaded: LoadedModel, family: str) -> None:
        self._loaded = loaded
        self._device: Device = loaded.device
        self._model = Model(loaded.pipeline, family, loaded.device, loaded.spec.compile)
        self._rows = loaded.spec.rows or 1
        self._limits: list[tuple[int, int]] = []
        """(pixels, rows): what did not fit; larger pictures get no more rows than that."""
        self._previews: PreviewMap | None = None
        tokenizers = [loaded.pipeline.tokenizer, getattr(loaded.pipeline, "tokenizer_2", None)]
        self._truncation = Truncation([tokenizer for tokenizer in tokenizers if tokenizer])
        self._alphas = loaded.pipeline.scheduler.alphas_cumprod
        self._prediction_type = str(loaded.pipeline.scheduler.config.prediction_type)

    @property
    def model(self) -> ModelFacts:
        """The loaded model."""
        return self._loaded.facts(self._model.family, self._rows)

    @property
    def runs_ahead(self) -> int:
        """As the device says."""
        return self._device.runs_ahead

    @torch.no_grad()
    def warm_up(self) -> WarmUpReport:
        """Choose the rows, run every configured size, fit the previews."""
        report, self._rows = warm_up(self._loaded, self._model, self.shrink)
        pipeline = self._loaded.pipeline
        self._previews = PreviewMap.fit(
            pipeline.vae,
            pipeline.vae_scale_factor,
            self._device,
            standardized=self._model.family == "sdxl",
        )
        return dataclasses.replace(report, preview_error=self._previews.error)

    def check(self, request: ImageRequest) -> None:
        """Refuse what the pipeline would refuse, before it takes a row."""
        if request.scheduler not in SCHEDULERS:
            raise InvalidInput(f"There is no scheduler named {request.scheduler!r}.")
        if self._model.family == "lcm" and request.scheduler != "lcm":
            raise InvalidInput("A latent consistency model runs with the scheduler lcm only.")
        factor = self._loaded.pipeline.vae_scale_factor
        if request.width % factor or request.height % factor:
            raise InvalidInput(f"Width and height must be multiples of {factor} pixels.")
        if (request.init_image is None) != (request.strength is None):
            raise InvalidInput("An initial image and a strength go together.")
        rule: StrengthRule = "all" if self._model.family == "lcm" else "down"
        if steps_to_run(request.steps, request.strength, rule) < 1:
            raise InvalidInput("strength times steps leaves no step to run.")

    def shape_of(self, request: ImageRequest) -> Shape:
        """The model's rows, or fewer where they once did not fit."""
        rows, pixels = request.rows or self._rows, request.width * request.height
        for size, limit in self._limits:
            if pixels >= size:
                rows = min(rows, limit)
        return Shape(request.width, request.height, self._model.guided(request), rows)

    @torch.no_grad()
    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[Row, Work[None]]:
        """Encode and draw the latents."""
        del shape
        row, begin, end = self._measured("encode", lambda: self._model.prepare(request))
        return row, Measured(lambda: None, begin, end)

    @torch.no_grad()
    def tick(self, shape: Shape, rows: Sequence[Row]) -> Work[None]:
        """One UNet call for all rows. The model names this piece of work itself."""
        begin = self._device.mark()
        self._model.tick(shape, rows)
        return Measured(lambda: None, begin, self._device.mark())

    @torch.no_grad()
    def preview(self, row: Row) -> Preview | None:
        """The clean picture that the last UNet call points to."""
        if self._previews is None or row.seen is None:
            return None
        latents = predicted_latents(row.seen, self._alphas, self._prediction_type)
        return self._previews.draw(latents, self._device)

    @torch.no_grad()
    def decode(self, row: Row) -> Work[Picture]:
        """One image at a time, which is the VAE's fixed shape."""
        image, begin, _ = self._measured("decode", lambda: self._model.decode(row.latents))
        download = start_download(image, self._device)
        return Measured(download.picture, begin, self._device.mark())

    @torch.no_grad()
    def rescue(
        self, request: ImageRequest, row: Row, alive: Callable[[], None]
    ) -> tuple[Picture, str]:
        """Higher precision."""
        try:
            return rescue(self._model, request, row, alive)
        finally:
            self._device.release_memory()

    def facts(self, row: Row, shape: Shape, notes: tuple[str, ...]) -> RunFacts:
        """What the receipt says."""
        if row.rescued:
            return self._loaded.run_facts(row.scheduler, 1, notes, row.dtype)
        compiled = self._model.compiled(shape)
        return self._loaded.run_facts(row.scheduler, shape.rows, notes, row.dtype, compiled)

    def discard(self, row: Row) -> None:
        """Free the row's slot."""
        self._model.leave(row)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """As the device says."""
        return self._device.is_out_of_memory(error)

    def is_fatal(self, error: BaseException) -> bool:
        """As the device says."""
        return self._device.is_fatal(error)

    @property
    def allocated_bytes(self) -> int | None:
        """As the device says."""
        return self._device.allocated_bytes

    def release_memory(self) -> None:
        """Give cached blocks back, and the buffers of idle shapes."""
        self._model.release_memory()

    def shrink(self, shape: Shape) -> Shape | None:
        """Half the rows, for this size and larger ones, from now on."""
        if shape.rows == 1:
            return None
        self._model.forget(shape)
        rows = shape.rows // 2
        self._limits.append((shape.width * shape.height, rows))
        return dataclasses.replace(shape, rows=rows)

    def truncated_part(self, prompt: str) -> str | None:
        """What the text encoders cut off."""
        return self._truncation.of(prompt)

    def close(self) -> None:
        """Let go of the device."""
        self._device.close()

    def _measured(self, kind: WorkKind, work: Callable[[], T]) -> tuple[T, Any, Any]:
        begin = self._device.mark()
        value = self._device.run(kind, work)
        return value, begin, self._device.mark()

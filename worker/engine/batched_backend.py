"""The batched backend: the families whose images are computed row by row."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from shared.core.errors import InvalidInput, ModelUnavailable
from shared.core.families import FAMILIES
from shared.core.prompt_weights import PromptSyntax, parse_weights
from shared.core.schedulers import steps_to_run
from worker.engine.adapters import AdapterCache, Adapters
from worker.engine.backend import DecodedImage, Preview, Shape, Work, fewer_rows
from worker.engine.controls import ControlNet, ControlNetCache
from worker.engine.device import WorkKind, measured, start_download
from worker.engine.families.base import Family, no_step_left
from worker.engine.interface import ImageRequest, ModelFacts, RunFacts, WarmUpReport, check_mask
from worker.engine.loaded import LoadedBackend, LoadedModel
from worker.engine.model import Model
from worker.engine.network import Compile
from worker.engine.previews import PreviewMap
from worker.engine.prompts import Truncation
from worker.engine.references import load_ip_adapter
from worker.engine.rescue import rescue
from worker.engine.row import Row
from worker.engine.warm_up import warm_up

T = TypeVar("T")

_NO_LIMIT = 2**31


class BatchedBackend(LoadedBackend):
    """Rows over one model."""

    exclusive = False

    def __init__(self, loaded: LoadedModel, family: type[Family]) -> None:
        super().__init__(loaded)
        if loaded.spec.scheduler not in FAMILIES[family.name].schedulers:
            choice = " or ".join(FAMILIES[family.name].schedulers)
            raise ModelUnavailable(
                f"Model {loaded.spec.name!r} is of the family {family.name}, which does not run "
                f"with the scheduler {loaded.spec.scheduler}: declare {choice} in models.toml."
            )
        self.runs_ahead = loaded.device.runs_ahead
        self.variant_per_text = family.variant_per_text
        self._family = family(loaded.pipeline, loaded.device, loaded.spec)
        adapter = self._family.ip_adapter = load_ip_adapter(
            loaded.pipeline, loaded.spec, loaded.device.torch_device, self._family.encode_device
        )
        if adapter is not None:
            memory = loaded.memory_bytes + adapter.memory_bytes
            self._loaded = dataclasses.replace(loaded, memory_bytes=memory)
        self._model = Model(self._family, loaded.spec.compile)
        self._batch_size = loaded.spec.max_batch_size or 1
        """Rows of the largest batch."""
        self._threads = loaded.spec.cpu_threads
        self._limits: list[tuple[int, int]] = []
        """(pixels, rows): what did not fit; larger images get no more rows than that."""
        self._previews: PreviewMap | None = None
        self._truncation = Truncation(self._family.readers())
        self._adapters = AdapterCache(
            loaded.pipeline, loaded.spec.lora_cache_bytes, family.shared_modules
        )
        self._controlnets = ControlNetCache(self._family, loaded.spec.controlnet_cache_bytes)

    @property
    def model(self) -> ModelFacts:
        return self._loaded.facts(self._family.name, self._batch_size, self._threads)

    @torch.no_grad()
    def warm_up(self) -> WarmUpReport:
        """Choose the rows, run every configured size, fit the previews."""
        report = warm_up(self._loaded, self._model, self)
        self._batch_size, self._threads = report.batch_size, self._device.cpu_threads
        self._previews = PreviewMap.fit(self._family.latents_of, self._device)
        return dataclasses.replace(report, preview_error=self._previews.error)

    def check(self, request: ImageRequest) -> None:
        facts, name = self._family.facts, self._loaded.spec.name
        if request.scheduler not in facts.schedulers:
            raise InvalidInput(
                f"Model {name!r} runs with the scheduler {' or '.join(facts.schedulers)}, not with "
                f"{request.scheduler!r}."
            )
        if request.true_cfg_scale is not None and not facts.true_cfg:
            raise InvalidInput(f"Model {name!r} does not support true_cfg_scale.")
        negative = self._family.takes_negative_prompt or request.true_cfg_scale is not None
        if request.negative_prompt and not negative:
            raise InvalidInput(f"Model {name!r} does not support negative prompts.")
        multiple = facts.size_multiple
        if request.width % multiple or request.height % multiple:
            raise InvalidInput(f"Width and height must be multiples of {multiple} pixels.")
        if request.from_image != (request.strength is not None):
            raise InvalidInput("An initial image and a strength go together.")
        if request.from_image and not facts.image_to_image:
            raise InvalidInput(f"Model {name!r} does not support image-to-image.")
        check_mask(request, facts.inpainting, name)
        self._check_weights(request)
        self._check_prompts(request)
        if self.steps_of(request) < 1:
            raise no_step_left()

    def _check_weights(self, request: ImageRequest) -> None:
        facts, name = self._family.facts, self._loaded.spec.name
        if request.loras and not self.takes_loras:
            raise InvalidInput(f"Model {name!r} does not support LoRAs.")
        if request.references and self._family.ip_adapter is None:
            raise InvalidInput(f"Model {name!r} does not support reference images.")
        if request.controls and not facts.controlnets:
            raise InvalidInput(f"Model {name!r} does not support ControlNets.")
        starts_again = request.from_image or request.hires is not None
        if request.controls and starts_again and not facts.control_images:
            raise InvalidInput(
                f"Model {name!r} takes ControlNets or initial images and second passes, not both."
            )

    def _check_prompts(self, request: ImageRequest) -> None:
        facts, name = self._family.facts, self._loaded.spec.name
        if request.long_prompt and not facts.long_prompts:
            raise InvalidInput(f"Model {name!r} does not support long prompts.")
        if request.prompt_syntax == "weighted":
            if not facts.prompt_weights:
                raise InvalidInput(f"Model {name!r} does not support prompt weights.")
            for text in (request.prompt, request.negative_prompt or ""):
                parse_weights(text)

    def steps_of(self, request: ImageRequest) -> int:
        """By the family's rule."""
        return steps_to_run(request.steps, request.strength, self._family.facts.strength_rule)

    @property
    def takes_loras(self) -> bool:
        """Fused projections have no place for what LoRAs add to each of them."""
        return self._adapters.supported and not self._loaded.spec.fuse_qkv

    def load_weights(self, request: ImageRequest) -> tuple[Adapters, tuple[ControlNet, ...]]:
        """From the caches, or from their files."""
        return self._adapters.get(request.loras), self._controlnets.get(request.controls)

    @property
    def loras(self) -> dict[str, str]:
        return self._adapters.loaded

    def shape_of(self, request: ImageRequest) -> Shape:
        """At the model's base or fixed batch size, or a smaller one where that once did not fit."""
        rows = request.batch_size or self._model.base or self._batch_size
        shape = self._model.shape(request, min(rows, self.limit(request.width * request.height)))
        on_cpu = self._device.torch_device.type == "cpu"
        asked = request.cpu_threads if on_cpu and request.cpu_threads != self._threads else None
        return dataclasses.replace(shape, cpu_threads=asked)

    def limit(self, pixels: int) -> int:
        """Rows that fit, as far as is known."""
        return min((rows for least, rows in self._limits if pixels >= least), default=_NO_LIMIT)

    def most(self, shape: Shape) -> int:
        """The largest size that agrees and fits."""
        limit = self.limit(shape.width * shape.height)
        return max(
            size for size in self._model.sizes(shape) if size <= max(limit, shape.batch_size)
        )

    def _use_threads(self, request: ImageRequest) -> None:
        self._device.use_threads(request.cpu_threads or self._threads)

    @torch.no_grad()
    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[Row, Work[None]]:
        self._use_threads(request)
        adapters, nets = self.load_weights(request)  # its flight holds them
        row, begin, end = self._measured(
            "encode", lambda: self._model.prepare(request, shape, adapters, nets)
        )
        return row, measured(lambda: None, begin, end)

    @torch.no_grad()
    def tick(
        self, shape: Shape, rows: Sequence[Row], alive: Callable[[], None] = lambda: None
    ) -> Work[int]:
        """One timestep for all rows. The batch names this piece of work itself."""
        self._device.use_threads(shape.cpu_threads or self._threads)
        self._model.alive = alive
        begin = self._device.mark()
        computed = self._model.tick(shape, rows)
        end = self._device.mark()

        def done() -> int:
            self._model.took(shape, computed, end.seconds_since(begin))
            return computed

        return measured(done, begin, end)

    @torch.no_grad()
    def preview(self, row: Row) -> Preview | None:
        """The clean image that the last tick points to."""
        if self._previews is None or row.seen is None:
            return None
        return self._previews.draw(self._family.clean(row.seen, row.request), self._device)

    @torch.no_grad()
    def decode(self, row: Row) -> Work[DecodedImage]:
        """One image at a time, which is the VAE's fixed shape."""
        self._use_threads(row.request)
        image, begin, _ = self._measured("decode", lambda: self._family.decode(row))
        downloaded = start_download(image, self._device)
        end = self._device.mark()
        return measured(lambda: self._in_place(downloaded(), row.request), begin, end)

    def _in_place(self, image: DecodedImage, request: ImageRequest) -> DecodedImage:
        """In the initial image, where the request repaints only a part of it."""
        if not image.sound:
            return image
        return DecodedImage(self._family.finished(image.pixels, request), sound=True)

    @torch.no_grad()
    def upscale(self, row: Row, width: int, height: int) -> Work[object]:
        """Alone, like a decode, so that no neighbour shows in the bits."""
        self._use_threads(row.request)
        latents, begin, end = self._measured(
            "decode", lambda: self._family.upscaled(row, width, height)
        )
        return measured(lambda: latents, begin, end)

    @torch.no_grad()
    def rescue(
        self, request: ImageRequest, row: Row, alive: Callable[[], None]
    ) -> tuple[DecodedImage, str]:
        self._use_threads(request)
        try:
            image, note = rescue(self._model, request, row, alive)
            return self._in_place(image, request), note
        finally:
            self._device.release_memory()

    def facts(self, row: Row, shape: Shape, notes: tuple[str, ...]) -> RunFacts:
        rows = 1 if row.rescued else shape.batch_size
        compiled: Compile = "off" if row.rescued else row.compiled
        facts = self._loaded.run_facts(row.scheduler, rows, notes, row.dtype, compiled)
        adapter, references = self._family.ip_adapter, row.request.references
        return dataclasses.replace(
            facts,
            loras=row.request.loras,
            controls=row.request.controls,
            references=references,
            ip_adapter=adapter.sha256 if adapter is not None and references else None,
            cpu_threads=shape.cpu_threads or self._threads or facts.cpu_threads,
            agreeing_sizes=(1,) if row.rescued else self._model.proven_sizes(shape),
        )

    def discard(self, row: Row) -> None:
        self._model.leave(row)

    def release_memory(self) -> None:
        """Give cached blocks back, LoRAs and ControlNets that no image uses, and the buffers of
        idle shapes.
        """
        self._adapters.clear()
        self._controlnets.clear()
        self._model.release_memory()

    def shrink(self, shape: Shape) -> Shape | None:
        """The next power of two, for this size and larger ones, from now on. Bases are such powers,
        so no row leaves its base before that was tried."""
        rows = fewer_rows(self.most(shape))
        if rows == 0:
            return None
        self._model.free_buffers(shape)
        self._limits.append((shape.width * shape.height, rows))
        return dataclasses.replace(shape, batch_size=min(shape.batch_size, rows))

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        if prompt_syntax == "plain" and not long_prompt:
            return self._truncation.of(prompt)
        return self._family.cut(prompt, prompt_syntax, long_prompt)

    def _measured(self, kind: WorkKind, work: Callable[[], T]) -> tuple[T, Any, Any]:
        begin = self._device.mark()
        value = self._device.run(kind, work)
        return value, begin, self._device.mark()

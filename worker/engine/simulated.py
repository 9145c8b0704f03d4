"""A simulated GPU behind the real step loop: benchmarks and chaos tests need speed, not images.

A tick sleeps `tick_seconds + row_seconds * rows`, whatever the rows do, as a batch on a GPU does;
an image is a real array that follows from the prompt, the seed and the settings alone, so that
two runs of the same request give the same bytes. Nothing here is ever chosen unasked: a model is
simulated only if its `source` says `simulated:`.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.core.errors import InvalidInput, ModelUnavailable, NanOutput
from shared.core.families import possible_steps
from shared.core.model_catalog import ModelSpec
from shared.core.prompt_weights import PromptSyntax
from shared.core.schedulers import SCHEDULERS
from worker.engine.backend import DecodedImage, Preview, Shape, Work, done
from worker.engine.interface import (
    FaultCallback,
    ImageRequest,
    ModelFacts,
    RunFacts,
    TickTime,
    WarmUpReport,
    check_mask,
)
from worker.engine.loop import StepLoop

SOURCE_PREFIX = "simulated:"


@dataclass(frozen=True)
class SimulatedSpeed:
    """How fast the simulated GPU is; all times in seconds."""

    tick_seconds: float = 0.004
    """The part of a tick that does not depend on the rows."""
    row_seconds: float = 0.0005
    """What each row of the batch, live or padded, adds to a tick."""
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    load_seconds: float = 0.0
    memory_bytes: float = 0.0
    """What the model pretends to take."""

    @classmethod
    def from_source(cls, source: str) -> "SimulatedSpeed":
        """Parse `simulated:tick=0.02&row=0.005&encode=0&decode=0.01&load=1&memory=1e9`.

        Each part is optional.

        Raises:
            ModelUnavailable: for anything else.
        """
        try:
            parts = dict(parse_qsl(source.removeprefix(SOURCE_PREFIX), strict_parsing=True))
            values = {
                "memory_bytes" if name == "memory" else f"{name}_seconds": float(text)
                for name, text in parts.items()
            }
            return cls(**values)
        except (TypeError, ValueError) as error:
            if source == SOURCE_PREFIX:
                return cls()
            raise ModelUnavailable(
                f"The source {source!r} is not a simulated GPU; an example is "
                "simulated:tick=0.02&row=0.005."
            ) from error


@dataclass
class SimulatedRow:
    """A row that counts its steps."""

    request: ImageRequest
    steps: int
    step: int = 0
    error: Exception | None = field(default=None)
    rescued: bool = False

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


class SimulatedBackend:
    """A backend whose device is a clock."""

    runs_ahead = 0
    exclusive = False
    variant_per_text = False

    def __init__(self, spec: ModelSpec, speed: SimulatedSpeed) -> None:
        self._spec = spec
        self._speed = speed
        self._batch_size = spec.max_batch_size or 1
        identity = f"simulated {spec.name} {spec.source}"
        self.model = ModelFacts(
            name=spec.name,
            content_hash=hashlib.sha256(identity.encode()).hexdigest(),
            revision=spec.revision,
            family="simulated",
            dtype="float32",
            device="simulated GPU",
            batch_size=self._batch_size,
            memory_bytes=int(speed.memory_bytes),
        )
        _sleep(speed.load_seconds)

    def warm_up(self) -> WarmUpReport:
        started = time.monotonic()
        sizes = self._spec.sizes_to_warm
        times = []
        for width, height in sizes:
            work = self.tick(Shape(width, height, self._batch_size, True), ())
            times.append(TickTime(width, height, self._batch_size, work()[1]))
        return WarmUpReport(time.monotonic() - started, sizes, self._batch_size, tuple(times))

    def check(self, request: ImageRequest) -> None:
        if request.scheduler not in SCHEDULERS:
            raise InvalidInput(f"There is no scheduler named {request.scheduler!r}.")
        if self.steps_of(request) < 1:
            raise InvalidInput("strength times steps leaves no step to run.")
        if request.references and self._spec.ip_adapter is None:
            raise InvalidInput(f"Model {self._spec.name!r} does not support reference images.")
        check_mask(request, True, self._spec.name)

    def steps_of(self, request: ImageRequest) -> int:
        """With the scheduler lcm, a simulated model plays a latent consistency model."""
        (steps,) = possible_steps(request.steps, request.strength, request.scheduler, "simulated")
        return steps

    loras: ClassVar[dict[str, str]] = {}

    def load_weights(self, request: ImageRequest) -> object:
        """There is nothing to load."""

    def shape_of(self, request: ImageRequest) -> Shape:
        rows = request.batch_size or self._batch_size
        return Shape(request.width, request.height, rows, request.guidance_scale > 1)

    def most(self, shape: Shape) -> int:
        """As a GPU whose batch sizes do not agree."""
        return shape.batch_size

    def prepare(self, request: ImageRequest, shape: Shape) -> tuple[SimulatedRow, Work[None]]:
        seconds = _sleep(self._speed.encode_seconds)
        return SimulatedRow(request, self.steps_of(request)), done(None, seconds)

    def tick(
        self, shape: Shape, rows: Sequence[SimulatedRow], alive: Callable[[], None] = lambda: None
    ) -> Work[int]:
        seconds = _sleep(self._speed.tick_seconds + self._speed.row_seconds * shape.batch_size)
        for row in rows:
            row.step += 1
        return done(shape.batch_size, seconds)

    def preview(self, row: SimulatedRow) -> Preview | None:
        return lambda: np.ascontiguousarray(image_of(row.request)[::8, ::8])

    def decode(self, row: SimulatedRow) -> Work[DecodedImage]:
        """Draw the image; the time that takes is part of the decode."""
        started = time.perf_counter()
        pixels = image_of(row.request)
        _sleep(self._speed.decode_seconds - (time.perf_counter() - started))
        return done(DecodedImage(pixels, sound=True), time.perf_counter() - started)

    def upscale(self, row: SimulatedRow, width: int, height: int) -> Work[object]:
        """The image of the first pass stands for its latents."""
        return done(image_of(row.request), 0.0)

    def rescue(
        self, request: ImageRequest, row: SimulatedRow, alive: Callable[[], None]
    ) -> tuple[DecodedImage, str]:
        """Simulated images are always sound."""
        raise NanOutput("A simulated image cannot be unsound.")

    def facts(self, row: SimulatedRow, shape: Shape, notes: tuple[str, ...]) -> RunFacts:
        """Honest facts: nothing here claims to be a diffusion model."""
        choice = SCHEDULERS[row.request.scheduler]
        return RunFacts(
            model=self.model.name,
            content_hash=self.model.content_hash,
            revision=self.model.revision,
            scheduler_class=choice.class_name,
            scheduler_config=dict(choice.overrides),
            dtype=self.model.dtype,
            device=self.model.device,
            torch_version="none",
            diffusers_version="none",
            cuda_version=None,
            batch_size=shape.batch_size,
            loras=row.request.loras,
            references=row.request.references,
            ip_adapter="0" * 64 if row.request.references else None,
            controls=row.request.controls,
            notes=notes,
        )

    def discard(self, row: SimulatedRow) -> None:
        """Nothing to free."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, MemoryError)

    def is_fatal(self, error: BaseException) -> bool:
        return False

    @property
    def allocated_bytes(self) -> int | None:
        return None

    def release_memory(self) -> None:
        """Nothing to release."""

    def shrink(self, shape: Shape) -> Shape | None:
        if shape.batch_size == 1:
            return None
        self._batch_size = max(1, shape.batch_size // 2)
        return replace(shape, batch_size=self._batch_size)

    def truncated_part(
        self, prompt: str, prompt_syntax: PromptSyntax = "plain", long_prompt: bool = False
    ) -> str | None:
        """What lies behind the first 75 words: real encoders read 75 tokens."""
        words = [] if long_prompt else prompt.split()
        return " ".join(words[75:]) or None

    def close(self) -> None:
        """Nothing to close."""


class SimulatedEngine(StepLoop[SimulatedRow]):
    """The real step loop over a simulated GPU."""

    def __init__(
        self,
        spec: ModelSpec,
        speed: SimulatedSpeed | None = None,
        on_fault: FaultCallback | None = None,
    ) -> None:
        super().__init__(
            lambda: SimulatedBackend(spec, speed or SimulatedSpeed.from_source(spec.source)),
            on_fault,
            spec.tick_budget,
        )


def image_of(request: ImageRequest) -> NDArray[np.uint8]:
    """The image of a request: soft colours with film grain, (height, width, 3).

    Smooth at large and noisy at small, so that encoding it costs about what a photograph costs.
    """
    mask = request.mask
    key = repr(
        (
            request.prompt,
            request.negative_prompt,
            request.seed,
            request.width,
            request.height,
            request.steps,
            request.guidance_scale,
            request.scheduler,
            request.strength,
            [(lora.sha256, lora.scale) for lora in request.loras],
            request.init_image.tobytes() if request.init_image is not None else None,
            *([request.init_latents.tobytes()] if request.init_latents is not None else []),
            (mask.image.tobytes(), mask.padding, mask.preserve) if mask is not None else None,
            *([mask.start.tobytes()] if mask is not None and mask.start is not None else []),
            *([request.prompt_syntax] if request.prompt_syntax != "plain" else []),
            *([request.long_prompt] if request.long_prompt else []),
            *((reference.sha256, reference.scale) for reference in request.references),
            *(
                (control.sha256, control.image.tobytes(), control.scale, control.start, control.end)
                for control in request.controls
            ),
        )
    )
    digest = hashlib.sha256(key.encode()).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    blocks = Image.fromarray(random.integers(40, 210, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(blocks.resize((request.width, request.height), Image.Resampling.BICUBIC))
    offset = int(random.integers(_GRAIN_OFFSETS))
    drawn = smooth + _grain(smooth.size)[offset : offset + smooth.size].reshape(smooth.shape)
    if mask is None or request.init_image is None or not mask.preserve:
        return drawn
    return np.asarray(Image.composite(Image.fromarray(drawn), request.init_image, mask.image))


_GRAIN_OFFSETS = 1 << 16


@lru_cache(maxsize=8)
def _grain(size: int) -> NDArray[np.uint8]:
    """Noise to cut an image's grain from: redrawing it would cost more than the image."""
    return np.random.Generator(np.random.PCG64(0)).integers(
        0, 8, size + _GRAIN_OFFSETS, dtype=np.uint8
    )


def _sleep(seconds: float) -> float:
    started = time.perf_counter()
    if seconds > 0:
        time.sleep(seconds)
    return time.perf_counter() - started

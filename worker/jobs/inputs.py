"""What a job asks of the engine: its requests, its initial image, and its prompt's row."""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from PIL import Image
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import autocommit
from shared.core.errors import InvalidInput
from shared.core.schedulers import SCHEDULERS
from shared.core.storage import ObjectMissing, Storage
from shared.images import queries as image_queries
from shared.images.fitting import FILTER, blurred, continued, filled, fitted, mask_of, resized
from shared.jobs.models import DEFAULT_MASK_BLUR, Job
from worker.engine.interface import (
    Control,
    GeneratedImage,
    Hires,
    ImageRequest,
    Lora,
    Mask,
    ModelFacts,
    Reference,
    RunFacts,
)
from worker.search.embedders import Embedder

_REMEMBERED = 4096
_Key = tuple[UUID, bytes]


class PromptRows:
    """The prompts that this process has lately seen on record: many jobs vary one prompt."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, job: Job) -> "PromptRow":
        """The job's."""
        return PromptRow(self, job)

    def __contains__(self, key: _Key) -> bool:
        with self._lock:
            return key in self._seen

    def remember(self, key: _Key) -> None:
        """It is on record now. Should it be deleted, the next commit finds out."""
        with self._lock:
            self._seen[key] = None
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)


class PromptRow:
    """The row of one job's prompt. Embeds at most once, however often a commit is tried."""

    def __init__(self, rows: PromptRows, job: Job) -> None:
        self._rows = rows
        self._job = job
        self._key = (job.tenant_id, image_queries.text_sha256(job.prompt))
        self.known = self._key in rows
        """Whether it was on record a while ago."""
        self._embedding: list[float] | None = None

    def look_up(self, database: sessionmaker[Session]) -> None:
        """Embed the prompt if the tenant has never used it; does nothing the second time.

        Raises:
            SQLAlchemyError: Postgres is unavailable.
        """
        if self.known or self._embedding is not None:
            return
        statement = image_queries.find_prompt(self._job.tenant_id, self._job.prompt)
        with autocommit(database) as session:
            self.known = session.scalars(statement).one_or_none() is not None
        if not self.known:
            self._embed()

    def committed(self) -> None:
        """A job that names it was committed, so it is on record."""
        self._rows.remember(self._key)

    @property
    def sha256(self) -> bytes:
        """What its row is found by."""
        return self._key[1]

    def ensure(self, session: Session) -> None:
        """Make sure that it is on record in the transaction, and stays until its end."""
        embedding = self._embedding or self._embed()
        session.execute(
            image_queries.ensure_prompt(
                self._job.tenant_id, self._job.prompt, embedding, self._rows.embedder.model_name
            )
        )

    def _embed(self) -> list[float]:
        [self._embedding] = self._rows.embedder.embed([self._job.prompt])
        return self._embedding


@dataclass(frozen=True)
class JobImages:
    """The images that a job starts from or looks at."""

    start: Image.Image | None = None
    """RGB."""
    mask: Mask | None = None
    references: tuple[Reference, ...] = ()
    controls: tuple[Image.Image, ...] = ()
    """What its ControlNets see, at the job's size."""


def load_images(storage: Storage, job: Job) -> JobImages:
    """The job's images.

    All were checked and re-encoded when they came in, so only their absence is an error here.

    Raises:
        InvalidInput: one has been deleted since the job was submitted.
        StorageUnavailable: S3 cannot be reached.
    """
    start, mask = _load_start(storage, job)
    controls = tuple(_load_control(storage, job, one) for one in job.options.get("controls", []))
    return JobImages(start, mask, _load_references(storage, job), controls)


def _load_start(storage: Storage, job: Job) -> tuple[Image.Image | None, Mask | None]:
    """The initial image as RGB and what of it is repainted; None for what there is not."""
    if job.init_image is None:
        return None, None
    image = _load(storage, job.init_image, "initial image")
    size, mode = (job.width, job.height), job.resize_mode
    start = image.convert("RGB")
    mask = job.init_image.get("mask")
    masking = _load(storage, mask, "mask") if mask else image
    from_alpha = job.options.get("mask_from_alpha", False)
    if mask or from_alpha:
        white = mask_of(masking, from_alpha=from_alpha)
    elif "expand" in job.options:
        start, white = expanded(start, size, mode, job.options["expand"])
        return start, _mask(white, start, job)
    else:
        return resized(start, size, mode), None
    start = fitted(start, size, mode)
    return start, _mask(fitted(white, size, mode), start, job)


def _load_references(storage: Storage, job: Job) -> tuple[Reference, ...]:
    return tuple(
        Reference(
            _load(storage, stored, "reference image").convert("RGB"),
            stored["sha256"],
            stored["scale"],
        )
        for stored in job.options.get("references", [])
    )


def _load_control(storage: Storage, job: Job, control: Mapping[str, Any]) -> Image.Image:
    image = _load(storage, control, "image of a ControlNet").convert("RGB")
    seen = fitted(image, (job.width, job.height), job.resize_mode or "fill")
    return (
        edges(seen, control["low"], control["high"]) if control["preprocess"] == "canny" else seen
    )


def edges(image: Image.Image, low: int, high: int) -> Image.Image:
    """White edges on black, by Canny's algorithm; thresholds of the gradient of 8-bit grey."""
    from skimage.feature import canny

    grey = np.asarray(image.convert("L"))
    found = canny(grey, sigma=0, low_threshold=low, high_threshold=high)  # type: ignore[no-untyped-call]
    return Image.fromarray(found.astype(np.uint8) * 255).convert("RGB")


def _load(storage: Storage, stored: Mapping[str, Any], what: str) -> Image.Image:
    try:
        body = storage.get(stored["s3_key"]).body
    except ObjectMissing as error:
        raise InvalidInput(f"the {what} has been deleted") from error
    with Image.open(io.BytesIO(body), formats=("PNG", "WEBP", "JPEG")) as image:
        image.load()
        return image


def _mask(white: Image.Image, start: Image.Image, job: Job) -> Mask:
    white = blurred(white, job.options.get("mask_blur", DEFAULT_MASK_BLUR))
    padding = job.options.get("padding_mask_crop")
    fills = job.options.get("masked_content") == "fill"
    return Mask(
        white,
        padding=padding,
        preserve=job.options.get("preserve_unmasked", True),
        start=filled(start, white, padding) if fills else None,
    )


def expanded(
    image: Image.Image, size: tuple[int, int], mode: str | None, borders: Mapping[str, int]
) -> tuple[Image.Image, Image.Image]:
    """The image with borders in pixels around it, which continue its edges, and a mask of these."""
    left, top = borders["left"], borders["top"]
    inner = fitted(
        image, (size[0] - left - borders["right"], size[1] - top - borders["bottom"]), mode
    )
    white = Image.new("L", size, 255)
    white.paste(0, (left, top, left + inner.width, top + inner.height))
    return continued(inner, size, left, top), white


def image_request(
    job: Job,
    index: int,
    images: JobImages,
    loras: tuple[Lora, ...] = (),
    controls: tuple[Control, ...] = (),
) -> ImageRequest:
    """What the engine is asked for: one of the job's images, with its own seed."""
    hires = hires_of(job)
    request = ImageRequest(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        seed=job.seeds[index],
        width=job.width,
        height=job.height,
        steps=job.steps,
        guidance_scale=job.guidance_scale,
        true_cfg_scale=job.true_cfg_scale,
        scheduler=job.scheduler,
        strength=job.strength,
        init_image=images.start,
        queue_class="bulk" if job.queue_class == "bulk" else "interactive",
        previews=job.previews,
        batch_size=job.batch_size,
        cpu_threads=job.options.get("cpu_threads"),
        loras=loras,
        controls=controls,
        hires=hires,
        mask=images.mask,
        references=images.references,
        prompt_syntax=job.options.get("prompt_syntax", "plain"),
        long_prompt=job.options.get("long_prompt", False),
    )
    if job.kind != "upscale" or hires is None:
        return request
    # The initial image stands for what a first pass would have made.
    return replace(
        request,
        width=hires.width,
        height=hires.height,
        steps=hires.steps,
        strength=hires.strength,
        upscaler=hires.upscaler,
        hires=None,
    )


def hires_of(job: Job) -> Hires | None:
    hires = job.options.get("hires")
    if hires is None:
        return None
    return Hires(
        width=hires["width"],
        height=hires["height"],
        strength=hires["strength"] or 0.0,
        steps=hires["steps"],
        upscaler=hires["upscaler"],
        batch_size=hires.get("batch_size"),
    )


def resampled(job: Job, start: Image.Image, model: ModelFacts) -> GeneratedImage | None:
    """The image of a job that denoises nothing: its initial image's pixels, upscaled."""
    hires = hires_of(job)
    if job.kind != "upscale" or hires is None or hires.steps > 0:
        return None
    started = time.monotonic()
    pixels = np.asarray(start.resize((hires.width, hires.height), FILTER))
    facts = RunFacts(
        model=model.name,
        content_hash=model.content_hash,
        revision=model.revision,
        scheduler_class=SCHEDULERS[job.scheduler].class_name,
        scheduler_config={},
        dtype="uint8",
        device="cpu",
        torch_version="none",
        diffusers_version="none",
        cuda_version=None,
        batch_size=1,
        loras=tuple(  # of the image; nothing loads them
            Lora(lora["name"], lora["sha256"], lora["scale"], Path())
            for lora in job.loras
            if "sha256" in lora
        ),
    )
    return GeneratedImage(pixels, facts, 0, 0.0, started, time.monotonic())

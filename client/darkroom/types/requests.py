"""Keyword arguments of requests. The server knows the limits and reports them."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Literal, Protocol, Required, TypedDict

from darkroom.types.images import Image, Upload

__all__ = [
    "BatchOptions",
    "ControlOptions",
    "FileSource",
    "HiresOptions",
    "InitImage",
    "JobOptions",
    "LoraOptions",
    "ReferenceOptions",
    "SearchFilters",
    "Webhook",
]


class PillowImage(Protocol):
    """A `PIL.Image.Image`; Pillow need not be installed."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:  # noqa: A002
        """Write it."""

    def convert(self, mode: str | None = None) -> Any:
        """The same in another mode."""


FileSource = os.PathLike[str] | bytes | IO[bytes] | tuple[str, bytes] | PillowImage
"""A path, the bytes themselves, an open binary file (read to its end), an image of Pillow (sent as
PNG), or name and bytes."""

InitImage = str | Image | Upload | FileSource
"""A `str` is an id, or a `data:` or https URL; anything else is uploaded first."""


class Webhook(TypedDict, total=False):
    """A receiver for one job or batch."""

    url: str
    events: Sequence[str]


class LoraOptions(TypedDict, total=False):
    """A LoRA of the server's catalogue, and how strongly it acts: -4 to 4, by default 1."""

    name: Required[str]
    scale: float


class ReferenceOptions(TypedDict, total=False):
    """An image that the model looks at alongside the prompt, and how much it counts: 0 to 2, by
    default 0.6."""

    image: Required[InitImage]
    scale: float


class ControlOptions(TypedDict, total=False):
    """A ControlNet, and the image that it sees."""

    name: Required[str]
    """One of a model's `controlnets`."""
    image: Required[InitImage]
    scale: float
    """How strongly it acts, 0 to 2, by default 1."""
    start: float
    """Where in the steps it begins, 0 to 1."""
    end: float
    """Where in the steps it ends, 0 to 1."""
    preprocess: Literal["none", "canny"]
    """canny: it sees the image's edges."""
    low: int
    """canny: weaker edges than this are left out, 0 to 255, by default 100."""
    high: int
    """canny: edges as strong as this are drawn, by default 200."""


class HiresOptions(TypedDict, total=False):
    """A second pass: each image is upscaled and denoised again."""

    scale: float
    """How many times larger, above 1 to 4; by default 2."""
    strength: float
    """How far it may leave the upscaled image, above 0 to 1; by default 0.7."""
    steps: int | None
    """Of the second pass's whole schedule; by default the job's."""
    upscaler: Literal["lanczos", "latent"]
    """`latent` (default) interpolates latents, `lanczos` resamples pixels."""


class ExpandOptions(TypedDict, total=False):
    """How much is painted around the initial image: pixels of the finished image."""

    left: int
    right: int
    top: int
    bottom: int


class JobOptions(TypedDict, total=False):
    """Everything of a job but its prompt; what is left out (or None) takes its default."""

    negative_prompt: str | None
    num_images: int | None
    seed: int | None
    """Of the first image; image i has `seed + i`. If omitted it is drawn at random and returned."""
    seeds: Sequence[int] | None
    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    true_cfg_scale: float | None
    """FLUX and Qwen-Image: guidance by a second call in each step, at least 1 (off)."""
    scheduler: str | None
    model: str | None
    session_id: str | None
    init_image: InitImage | None
    strength: float | None
    """How far to depart from the initial image, above 0 to 1."""
    mask_image: InitImage | None
    """Of the initial image's size: white is repainted, black stays."""
    mask_from_alpha: bool | None
    """Repaint the initial image where it is transparent."""
    expand: ExpandOptions | None
    """Paint on beyond the initial image's edges."""
    masked_content: Literal["original", "fill"] | None
    """Start under the mask from the initial image (default) or the colors around it."""
    mask_blur: int | None
    """Width of the blend at the mask's edge, in pixels."""
    padding_mask_crop: int | None
    """Make only the region around the mask, at full size, with this many pixels around it."""
    preserve_unmasked: bool | None
    """Whether every pixel outside the blurred mask stays as it was (default)."""
    resize_mode: Literal["fill", "fit", "stretch"] | None
    """How an initial image of another shape is given the job's size: cropped (default), shown
    whole with its edges extended, or stretched. Without width and height the job takes its shape.
    """
    loras: Sequence[LoraOptions] | None
    """Up to four, in the order in which they act."""
    controls: Sequence[ControlOptions] | None
    """Up to two ControlNets, each with an image that the job follows."""
    references: Sequence[ReferenceOptions] | None
    """Up to two images whose content and style the job takes up; for models with an IP-Adapter."""
    prompt_syntax: Literal["plain", "weighted"] | None
    """`weighted`: `(word:1.3)`, `[word]` and `BREAK` in prompts steer, as in AUTOMATIC1111's web
    UI; by default they are text."""
    long_prompt: bool | None
    """SD and SDXL: read prompts beyond 75 tokens, too."""
    hires: HiresOptions | None
    """Makes each image larger; `width` and `height` are those before."""
    output_format: Literal["png", "webp", "jpeg"] | None
    output_quality: int | None
    """Of JPEG (default 95) and WebP (default: lossless), 1 to 100."""
    metadata: Mapping[str, str] | None
    previews: bool | None
    start_within: float | None
    """Seconds; a job that has not started by then expires."""
    finish_within: float | None
    """Seconds; a job that has not finished by then expires."""
    webhook: Webhook | None


class BatchOptions(TypedDict, total=False):
    """Options of a whole batch."""

    defaults: Mapping[str, Any] | None
    """Job fields for all lines; a line's own override them."""
    on_error: Literal["reject", "skip"] | None
    templates: bool | None
    """Whether `{a|b}` in prompts stands for several prompts; by default it does."""
    template: str | None
    """The prompt of every line; `{name}` is the value of that column."""
    columns: Mapping[str, str | Sequence[str] | None] | None
    """The field that a column fills: `{"sku": "custom_id"}`; or several, `metadata.NAME`, None."""
    name: str | None
    """A name of your choice; by default the file's name."""
    session_id: str | None
    priority: int | None
    start_within: float | None
    finish_within: float | None
    metadata: Mapping[str, str] | None
    webhook: Webhook | None


class SearchFilters(TypedDict, total=False):
    """Every filter that is given must match."""

    session_id: str | None
    model: str | None
    seed: int | None
    kind: Literal["txt2img", "img2img", "inpaint", "upscale"] | None
    width: int | None
    height: int | None
    created_after: datetime | None
    created_before: datetime | None
    starred: bool | None
    metadata: Mapping[str, str] | None
    """Of the job: each key must have this value."""
    min_score: float | None
    """Leave out results that score less, 0 to 1. Needs a query."""
    diversity: bool | None
    """Within a page, move near-duplicates of a better result behind others about as good."""
    fold: bool | None
    """Within a page, fold near-duplicates into the better result's `near_duplicates`."""

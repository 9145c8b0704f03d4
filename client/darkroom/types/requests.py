"""What can be asked for, as keyword arguments. The server knows the limits and says them."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Literal, TypedDict

from darkroom.types.images import Image, Upload

FileSource = os.PathLike[str] | bytes | IO[bytes] | tuple[str, bytes]
"""A path, the bytes themselves, an open binary file (read to its end), or name and bytes."""

InitImage = str | Image | Upload | FileSource
"""A text is an id, a `data:` or an https URL; a path, bytes or a file is uploaded first."""


class Webhook(TypedDict, total=False):
    """A receiver for one job or batch."""

    url: str
    events: Sequence[str]


class JobOptions(TypedDict, total=False):
    """Everything of a job but its prompt; what is left out (or None) has its default."""

    negative_prompt: str | None
    num_images: int | None
    seed: int | None
    """Of the first picture; picture i has `seed + i`. Without one it is drawn, and returned."""
    seeds: Sequence[int] | None
    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    scheduler: str | None
    model: str | None
    session_id: str | None
    init_image: InitImage | None
    strength: float | None
    """How far to leave the initial image, above 0 to 1."""
    resize_mode: Literal["fill", "fit", "stretch"] | None
    """How an initial image of another shape gets the job's size: cropped (default), shown whole
    with its edges continued, or stretched. Without width and height the job gets its shape."""
    output_format: Literal["png", "webp", "jpeg"] | None
    metadata: Mapping[str, str] | None
    previews: bool | None
    start_within: float | None
    """Seconds; a job that has not started by then expires."""
    finish_within: float | None
    """Seconds; a job that has not finished by then expires."""
    webhook: Webhook | None


class BatchOptions(TypedDict, total=False):
    """What holds for a whole batch."""

    defaults: Mapping[str, Any] | None
    """Fields of a job for all lines; a line's own override them."""
    on_error: Literal["reject", "skip"] | None
    templates: bool | None
    """Whether `{a|b}` in prompts stands for several prompts; they do unless told."""
    template: str | None
    """The prompt of every line; `{name}` is the value of that column."""
    columns: Mapping[str, str | Sequence[str] | None] | None
    """Which field a column is: `{"sku": "custom_id"}`; also several, `metadata.NAME`, or None."""
    session_id: str | None
    priority: int | None
    start_within: float | None
    finish_within: float | None
    metadata: Mapping[str, str] | None
    webhook: Webhook | None


class SearchFilters(TypedDict, total=False):
    """All that are given must hold."""

    session_id: str | None
    model: str | None
    seed: int | None
    kind: Literal["txt2img", "img2img"] | None
    width: int | None
    height: int | None
    created_after: datetime | None
    created_before: datetime | None
    starred: bool | None
    metadata: Mapping[str, str] | None
    """Of the job: every key must have this value."""
    min_score: float | None
    """Leave out what scores less, 0 to 1. It needs a query."""
    diversity: bool | None
    """Within a page, near-duplicates of a better entry go behind what is about as good."""

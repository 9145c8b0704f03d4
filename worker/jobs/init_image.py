"""Fetch the image that an img2img job starts from, and bring it to the job's size."""

import io

import numpy as np
from PIL import Image, ImageOps

from shared.errors import InvalidInput
from shared.jobs.models import Job
from shared.storage import ObjectMissing, Storage

_FILTER = Image.Resampling.LANCZOS


def load_init_image(storage: Storage, job: Job) -> Image.Image | None:
    """The initial image as RGB, or None for text to image.

    It was checked and re-encoded when it came in, so only its absence is an error here.

    Raises:
        InvalidInput: it has been deleted since the job was submitted.
        StorageUnavailable: S3 cannot be reached.
    """
    if job.init_image is None:
        return None
    try:
        stored = storage.get(job.init_image["s3_key"])
    except ObjectMissing as error:
        raise InvalidInput("the initial image has been deleted") from error
    with Image.open(io.BytesIO(stored.body), formats=("PNG", "WEBP", "JPEG")) as image:
        return resized(image.convert("RGB"), (job.width, job.height), job.resize_mode)


def resized(image: Image.Image, size: tuple[int, int], mode: str | None) -> Image.Image:
    """The RGB `image` at (width, height) = `size`.

    `fill` cuts off what is too much on two sides; `fit` shows all of it and continues its edges.
    `stretch`, or None, leaves it as it is: the pipelines of diffusers stretch images themselves,
    and have always done so for jobs without a mode.
    """
    if mode == "fill":
        return ImageOps.fit(image, size, _FILTER)
    if mode == "fit":
        return _with_edges_continued(ImageOps.contain(image, size, _FILTER), size)
    return image


def _with_edges_continued(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bars of one colour would be taken for part of the scene."""
    across, down = size[0] - image.width, size[1] - image.height
    beside = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return Image.fromarray(np.pad(np.asarray(image), beside, mode="edge"))

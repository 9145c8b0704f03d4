"""Fetch the picture that an img2img job starts from."""

import io

from PIL import Image

from shared.errors import InvalidInput
from shared.jobs.models import Job
from shared.storage import ObjectMissing, Storage


def load_init_image(storage: Storage, job: Job) -> Image.Image | None:
    """The starting picture as RGB, or None for text to image.

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
    with Image.open(io.BytesIO(stored.body), formats=("PNG", "WEBP", "JPEG")) as picture:
        return picture.convert("RGB")

"""The rules of images: find, show, read."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, TypeVar

from api.context import Resources, parse_id, require_row
from api.core.errors import Problem
from api.core.principal import Principal
from api.core.tickets import Tickets
from api.images.schemas import Image, ImageLinks, JobImage
from shared.core.errors import StorageUnavailable
from shared.core.ids import encode_id
from shared.core.storage import EXTENSIONS, ObjectMissing, Storage, StoredObject
from shared.images import models, queries
from shared.images.formats import ImageDimensions, ImageNotRecognized, ImageUndecodable, read_header

if TYPE_CHECKING:  # the API starts without Pillow
    from PIL.Image import Image as PillowImage

T = TypeVar("T")

TICKETS = Tickets(
    "image",
    timedelta(hours=1),
    ("images:read", "jobs:read"),
    "The ticket is malformed, has ended, or is not for this image.",
)


async def content_url(resources: Resources, principal: Principal, row: models.Image) -> str:
    """Where anybody can read the image's file for an hour, from this API and not from storage.

    Object storage refuses a presigned URL that comes with an Authorization header, which clients
    that got it from an API send along.
    """
    ticket, _end = await TICKETS.issue(resources, principal, row.id)
    path = f"/v1/images/{encode_id('img', row.id)}/content?proxy=true&ticket={ticket}"
    return resources.settings.public_url + path


async def find(resources: Resources, principal: Principal, image_id: str) -> models.Image:
    """A tenant's image.

    Raises:
        Problem: 404.
    """
    row_id = parse_id("img", image_id, "image")
    async with resources.tenant_transaction(principal) as session:
        return await require_row(session, queries.get_image(principal.tenant_id, row_id), "image")


def serialize(resources: Resources, row: models.Image) -> Image:
    """The wire form of an image."""
    return Image.of(row, **fields(resources, row))


def fields(resources: Resources, row: models.Image) -> dict[str, Any]:
    """What an `Image` has that its row does not have under the same name."""
    image_id, job_id = encode_id("img", row.id), encode_id("job", row.job_id)
    base = resources.settings.public_url
    here = f"{base}/v1/images/{image_id}"
    return {
        **_signed(row, resources.storage),
        "job_id": job_id,
        "model": row.receipt["model"]["name"],
        "prompt": row.receipt["prompt"],
        "negative_prompt": row.receipt.get("negative_prompt"),
        "links": ImageLinks(
            self=here,
            content=f"{here}/content",
            thumbnail=f"{here}/thumbnail",
            receipt=f"{here}/receipt",
            job=f"{base}/v1/jobs/{job_id}",
        ),
    }


def serialize_image(row: models.Image, storage: Storage) -> JobImage:
    """The wire form of an image inside its job."""
    return JobImage.of(row, **_signed(row, storage))


def _signed(row: models.Image, storage: Storage) -> dict[str, Any]:
    return {
        "marks": row.receipt.get("marks", []),
        "id": encode_id("img", row.id),
        "url": storage.presign(row.s3_key),
        "thumbnail_url": storage.presign(row.thumbnail_s3_key),
    }


def file_name(row: models.Image) -> str:
    """What a downloaded image is called: it leads back to its image and seed."""
    return f"{encode_id('img', row.id)}-{row.seed}.{EXTENSIONS[row.content_type]}"


_OBJECT_SECONDS = 15.0
"""For one image's file; clients give up after some 30."""


async def read_object(resources: Resources, key: str) -> StoredObject:
    """An image's file.

    Raises:
        Problem: 404 when S3 no longer has it, 503 when S3 is unavailable.
    """
    return await _read(resources, resources.storage.get, key)


async def read_object_into(resources: Resources, key: str, file: IO[bytes]) -> None:
    """An image's file, part by part; raises as `read_object`."""
    await _read(resources, resources.storage.read_into, key, file)


async def _read(resources: Resources, read: Callable[..., T], *args: Any) -> T:
    try:
        return await resources.on_storage(read, *args, seconds=_OBJECT_SECONDS)
    except ObjectMissing:
        raise Problem("object_missing") from None
    except StorageUnavailable:
        raise Problem("storage_unavailable") from None


_MAX_SIDE = 4096
_MAX_TEXT = 200_000
"""Characters of a text in an image that is shown."""
_DAMAGED = (OSError, ValueError, SyntaxError, MemoryError)
"""What Pillow raises for a damaged header; the pixels are never decoded here."""


def receipt_of(data: bytes) -> dict[str, Any] | None:
    """The receipt in a file's metadata; reads the header and text chunks only.

    Raises:
        ImageRefused: the file is not a PNG, WebP or JPEG of a size that we make.
    """
    from shared.images.receipts import read_receipt

    return _read_header(data, read_receipt)


def texts_of(data: bytes) -> dict[str, str]:
    """The texts in a file's metadata by name, without the receipt; as `receipt_of`."""
    from shared.images.receipts import CHUNK

    def read(image: "PillowImage") -> dict[str, str]:
        return {
            name: text.encode("utf-8", "replace").decode()
            for name, text in image.info.items()
            if isinstance(name, str) and isinstance(text, str)
            if name != CHUNK and len(text) <= _MAX_TEXT
        }

    return _read_header(data, read)


def _read_header(data: bytes, read: "Callable[[PillowImage], T]") -> T:
    from PIL import Image, UnidentifiedImageError

    header = read_header(data)
    if header.size is not None and max(header.size) > _MAX_SIDE:
        raise ImageDimensions(f"A side has more than {_MAX_SIDE} pixels.")
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            return read(image)
    except Image.DecompressionBombError:
        raise ImageDimensions("It has more pixels than are accepted.") from None
    except UnidentifiedImageError:
        raise ImageNotRecognized("The file cannot be read as an image.") from None
    except _DAMAGED:
        raise ImageUndecodable("Its header is damaged.") from None

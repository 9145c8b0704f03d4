"""Take in a client's picture: check and re-encode it, put it into S3."""

import contextlib
from typing import Any

from api.deps import Resources
from api.fairness import acting_key
from api.principal import Principal
from api.problems import Problem
from shared.errors import StorageUnavailable
from shared.ids import new_id
from shared.images import CleanImage, ImageDecoderUnavailable, ImageLimits, sanitize_image
from shared.images.intake import ByteStream
from shared.storage import upload_key


async def clean_image(
    resources: Resources, source: bytes | ByteStream, fit_side: int | None = None
) -> CleanImage:
    """Check and re-encode a client's picture, in a thread; scaled down to fit, if need be.

    Raises:
        ImageRefused: the file is at fault.
        Problem: 503 when no decoder is free.
    """
    limits = ImageLimits(max_bytes=resources.settings.max_upload_bytes)
    try:
        return await resources.gates.decoders.run(
            resources.decoder_threads,
            acting_key.get(),
            limits.queue_s + limits.decoder_wall_s,
            sanitize_image,
            source,
            limits,
            fit_side,
        )
    except (ImageDecoderUnavailable, TimeoutError):
        raise Problem("decoder_unavailable") from None


async def store_upload(
    resources: Resources, principal: Principal, clean: CleanImage
) -> dict[str, Any]:
    """Put a cleaned picture into S3; the columns of its row, for the caller to insert.

    Raises:
        Problem: 503 when S3 is away.
    """
    upload_id = new_id()
    key = upload_key(upload_id)
    try:
        await resources.on_storage(resources.storage.put, key, clean.data, clean.content_type)
    except StorageUnavailable:
        raise Problem("storage_unavailable") from None
    return {
        "id": upload_id,
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "width": clean.width,
        "height": clean.height,
        "content_type": clean.content_type,
        "bytes": len(clean.data),
        "sha256": clean.sha256,
        "s3_key": key,
    }


async def discard_upload(resources: Resources, columns: dict[str, Any]) -> None:
    """Remove the object of an upload whose row was not written; at worst an orphan is left."""
    with contextlib.suppress(StorageUnavailable):
        await resources.on_storage(resources.storage.delete, [columns["s3_key"]])

"""The body of a webhook: thin, the same on every attempt but for the life of its image URLs.

What changes after the event is left out or was noted when it happened. An event has the names of
the resource as the API answers it, but fewer of them; `links.self` leads to the whole.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from shared.core.ids import Prefix, to_wire
from shared.core.storage import Storage
from shared.images.models import Image
from shared.webhooks.events import BATCH_EVENTS, JOB_EVENTS
from shared.webhooks.models import WebhookEvent

MAX_BYTES = 20_000
"""Standard Webhooks advises less than 20 kB."""


def build_body(
    event: WebhookEvent, images: Sequence[Image], storage: Storage, public_url: str
) -> bytes:
    """The JSON of an event, at most `MAX_BYTES` long, UTF-8.

    `images` are those of a job that has succeeded. What does not fit is left out, first the
    thumbnails, then metadata, then images from the end, and ``data.truncated`` names it.
    """
    base = public_url.rstrip("/")
    if event.type in JOB_EVENTS:
        data = _job(event, images, storage, base)
    elif event.type in BATCH_EVENTS:
        data = _resource("batch", "batches", event, base)
    else:
        data = _resource("whe", "webhook-endpoints", event, base)
    message = {
        "id": to_wire("evt", event.id),
        "type": event.type,
        "timestamp": _wire_time(event.created_at),
        "sequence": event.sequence,
        "data": data,
    }
    for shorten in (_drop_thumbnails, _drop_metadata, _drop_images):
        body = _dump(message)
        if len(body) <= MAX_BYTES:
            return body
        shorten(message)
    return _dump(message)


def _job(
    event: WebhookEvent, images: Sequence[Image], storage: Storage, base: str
) -> dict[str, Any]:
    then = dict(event.data)
    wire_id = to_wire("job", event.resource_id)
    error = {"code": then.pop("error_code", None), "message": then.pop("error_message", None)}
    batch_id = then.pop("batch_id", None)
    for name in ("created_at", "started_at", "finished_at"):
        text = then.get(name)
        then[name] = _wire_time(datetime.fromisoformat(text)) if text else None
    return {
        "id": wire_id,
        "sequence": event.sequence,
        "batch_id": to_wire("batch", UUID(batch_id)) if batch_id else None,
        **then,
        "error": error if error["code"] else None,
        "images": [_image(image, storage) for image in images],
        "links": {
            "self": f"{base}/v1/jobs/{wire_id}",
            "images": f"{base}/v1/jobs/{wire_id}/images",
        },
    }


def _image(image: Image, storage: Storage) -> dict[str, Any]:
    return {
        "id": to_wire("img", image.id),
        "index": image.index,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
        "content_type": image.content_type,
        "bytes": image.bytes,
        "sha256": image.sha256,
        "url": storage.presign(image.s3_key),
        "thumbnail_url": storage.presign(image.thumbnail_s3_key),
    }


def _resource(prefix: Prefix, plural: str, event: WebhookEvent, base: str) -> dict[str, Any]:
    wire_id = to_wire(prefix, event.resource_id)
    return {"id": wire_id, **event.data, "links": {"self": f"{base}/v1/{plural}/{wire_id}"}}


def _drop_thumbnails(message: dict[str, Any]) -> None:
    images = message["data"].get("images", [])
    for image in images:
        del image["thumbnail_url"]
    if images:
        _note(message, "images.thumbnail_url")


def _drop_metadata(message: dict[str, Any]) -> None:
    if message["data"].get("metadata"):
        message["data"]["metadata"] = None
        _note(message, "metadata")


def _drop_images(message: dict[str, Any]) -> None:
    images = message["data"].get("images", [])
    if images:
        _note(message, "images")
    while images and len(_dump(message)) > MAX_BYTES:
        images.pop()


def _note(message: dict[str, Any], name: str) -> None:
    message["data"].setdefault("truncated", []).append(name)


def _dump(message: dict[str, Any]) -> bytes:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8")


def _wire_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

"""A webhook's request: its body, its signature, where it may go, and when it is tried again."""

import base64
import json
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from standardwebhooks import Webhook

from shared.core.filters import filtered_images
from shared.core.ids import Prefix, encode_id
from shared.core.outbound.addresses import LOOPBACK, OutboundPolicy
from shared.core.settings import Settings
from shared.core.storage import Storage
from shared.images.models import Image
from shared.webhooks.models import BATCH_EVENTS, JOB_EVENTS, WebhookEvent

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_BYTES = 20_000
"""Standard Webhooks advises less than 20 kB."""


def build_body(
    event: WebhookEvent, images: Sequence[Image], storage: Storage, public_url: str
) -> bytes:
    """The JSON of an event, at most `MAX_BYTES` long, UTF-8.

    `images` are those of a job that has succeeded. What does not fit is left out, first the
    thumbnails, then metadata, then images from the end, and ``data.truncated`` names it.
    """
    if event.type in JOB_EVENTS:
        data = _job(event, images, storage, public_url)
    elif event.type in BATCH_EVENTS:
        data = _resource("batch", "batches", event, public_url)
    else:
        data = _resource("whe", "webhook-endpoints", event, public_url)
    message = {
        "id": encode_id("evt", event.id),
        "type": event.type,
        "timestamp": _format_time(event.created_at),
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
    public_id = encode_id("job", event.resource_id)
    error = {"code": then.pop("error_code", None), "message": then.pop("error_message", None)}
    batch_id = then.pop("batch_id", None)
    filtered = filtered_images(then.pop("filtered", None) or ())
    ready = [_image(image, storage) for image in images]
    for name in ("created_at", "started_at", "finished_at"):
        text = then.get(name)
        then[name] = _format_time(datetime.fromisoformat(text)) if text else None
    return {
        "id": public_id,
        "sequence": event.sequence,
        "batch_id": encode_id("batch", UUID(batch_id)) if batch_id else None,
        **then,
        "error": error if error["code"] else None,
        "images": sorted(ready + filtered, key=lambda image: int(image["index"])),
        "links": {
            "self": f"{base}/v1/jobs/{public_id}",
            "images": f"{base}/v1/jobs/{public_id}/images",
        },
    }


def _image(image: Image, storage: Storage) -> dict[str, Any]:
    return {
        **image.facts(),
        "url": storage.presign(image.s3_key),
        "thumbnail_url": storage.presign(image.thumbnail_s3_key),
    }


def _resource(prefix: Prefix, plural: str, event: WebhookEvent, base: str) -> dict[str, Any]:
    public_id = encode_id(prefix, event.resource_id)
    return {"id": public_id, **event.data, "links": {"self": f"{base}/v1/{plural}/{public_id}"}}


def _drop_thumbnails(message: dict[str, Any]) -> None:
    images = message["data"].get("images", [])
    for image in images:
        image.pop("thumbnail_url", None)
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


def _format_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


# What is signed is ``<webhook-id>.<webhook-timestamp>.<body>``. Two schemes:
#
# ``v1`` HMAC-SHA256; the receiver holds the same secret, ``whsec_`` and 32 bytes in base64.
# ``v1a`` ed25519 (RFC 8032); the receiver holds the public key, ``whpk_`` and 32 bytes in base64.
#
# While a secret is being rotated the header carries a signature of each, separated by spaces.

SECRET_BYTES = 32


class SigningKey(NamedTuple):
    """32 secret bytes and what they are for."""

    scheme: str
    secret: bytes

    def __repr__(self) -> str:
        return f"SigningKey(scheme={self.scheme!r})"


def new_secret() -> bytes:
    """32 bytes from the operating system's random source; good for either scheme."""
    return secrets.token_bytes(SECRET_BYTES)


def secret_text(secret: bytes) -> str:
    """A v1 secret as receivers configure it."""
    return "whsec_" + base64.b64encode(secret).decode("ascii")


def public_key_text(secret: bytes) -> str:
    """The public key of a v1a secret as receivers configure it."""
    public = _private_key(secret).public_key()
    return "whpk_" + base64.b64encode(public.public_bytes_raw()).decode("ascii")


def signed_headers(
    event_id: str, moment: datetime, body: bytes, keys: Sequence[SigningKey]
) -> dict[str, str]:
    """The three headers of one attempt, made at `moment` (aware), signed with each key in turn."""
    # The library takes any aware time for UTC, so a time with another offset must become UTC here.
    moment = moment.astimezone(UTC)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(_sign(event_id, moment, body, key) for key in keys),
    }


def _sign(event_id: str, moment: datetime, body: bytes, key: SigningKey) -> str:
    if key.scheme == "v1":
        return Webhook(key.secret).sign(event_id, moment, body.decode("utf-8"))
    signed = b"%s.%d.%s" % (event_id.encode("ascii"), int(moment.timestamp()), body)
    signature = _private_key(key.secret).sign(signed)
    return "v1a," + base64.b64encode(signature).decode("ascii")


def _private_key(secret: bytes) -> "Ed25519PrivateKey":
    # Imported late: the library takes 10 MB, and most processes never sign with this scheme.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(secret)


# The gaps are those that the Standard Webhooks specification (1.0.0, "Deliverability and
# reliability") gives as its example: ten attempts over about 75.6 hours.

GAPS = (
    *(timedelta(0), timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30)),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
)
"""Before each attempt, counted from the end of the one before; the first goes out at once."""

JITTER = 0.1
"""A gap is up to this share longer or shorter, lest an outage's backlog march in step."""


def next_gap(failures: int, jitter: float) -> timedelta | None:
    """How long to wait after `failures` failed attempts (≥ 1); None: the schedule is used up.

    `jitter` is a number from -1 to 1, drawn by the caller.
    """
    if failures >= len(GAPS):
        return None
    return GAPS[failures] * (1 + JITTER * jitter)


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The duration of a Retry-After field (RFC 9110, 10.2.3); None where there is none to read.

    Seconds or an HTTP date, which is compared with `now` (aware). A date that has passed is zero.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return timedelta(seconds=min(int(value[:10]), 10**8))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(moment - now, timedelta(0))


def webhook_policy(settings: Settings) -> OutboundPolicy:
    """Public https, and what the operator allows besides; the local stack allows loopback.

    On one's own machine, that is, so that webhooks can be tried out there.
    """
    if settings.environment == "local":
        return OutboundPolicy(
            allow_http=True, allowed_networks=(*LOOPBACK, *settings.webhook_allowed_networks)
        )
    return OutboundPolicy(
        allow_http=settings.webhook_allow_http, allowed_networks=settings.webhook_allowed_networks
    )

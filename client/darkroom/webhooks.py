"""Verify a webhook: `event = darkroom.webhooks.verify(body, headers, secret)`."""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from standardwebhooks import Webhook, WebhookVerificationError

from darkroom.decoding import decode
from darkroom.errors import (
    APIResponseValidationError,
    ConfigurationError,
    InvalidWebhookSignatureError,
)
from darkroom.extras import how_to_install
from darkroom.types.webhooks import WebhookEvent

_PUBLIC = "whpk_"
_TOLERANCE = timedelta(minutes=5)


def verify(body: bytes, headers: Mapping[str, str], secret: str | Iterable[str]) -> WebhookEvent:
    """The event, if Darkroom has signed it (Standard Webhooks 1.0.0).

    Args:
        body: the bytes as received; JSON that was parsed and written again differs.
        headers: of the request, in any case.
        secret: `whsec_…` (v1, HMAC-SHA256) or `whpk_…` (v1a, ed25519, which needs
            the extra `ed25519`); several while one replaces another.

    Raises:
        InvalidWebhookSignatureError: no signature matches, or it is damaged or more than
            five minutes old.
        ConfigurationError: the secret is malformed.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    _check_time(lowered.get("webhook-timestamp", ""))
    secrets = [secret] if isinstance(secret, str) else list(secret)
    if not any(_fits(body, lowered, each) for each in secrets):
        raise InvalidWebhookSignatureError("No signature of the request matches this secret.")
    try:
        return decode(WebhookEvent, json.loads(body))
    except (ValueError, APIResponseValidationError) as error:
        raise InvalidWebhookSignatureError(
            f"The signature is right, the event is not: {error}"
        ) from error


def _check_time(text: str) -> None:
    # The library reads floats, NaN among them; whole seconds are all that the protocol has.
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise InvalidWebhookSignatureError("The request has no webhook-timestamp.")
    sent = datetime.fromtimestamp(int(text), UTC)
    if abs(datetime.now(UTC) - sent) > _TOLERANCE:
        raise InvalidWebhookSignatureError(
            "The request is more than five minutes old, or a clock is wrong."
        )


def _fits(body: bytes, headers: Mapping[str, str], secret: str) -> bool:
    if secret.startswith(_PUBLIC):
        return _fits_public_key(body, headers, secret)
    try:
        webhook = Webhook(secret)
    except Exception as error:
        raise ConfigurationError("This is not a webhook secret: whsec_ and base64.") from error
    # A signature of another scheme, or a damaged one, must not hide one that fits.
    for signature in headers.get("webhook-signature", "").split(" "):
        try:
            webhook.verify(body, {**headers, "webhook-signature": signature}, json_parse=False)
        except (WebhookVerificationError, ValueError):
            continue
        return True
    return False


def _fits_public_key(body: bytes, headers: Mapping[str, str], secret: str) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature as NoMatch
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        hint = how_to_install("ed25519", {"cryptography": "cryptography"})
        raise ConfigurationError(f"ed25519 signatures cannot be checked: {hint}") from error
    try:
        key = Ed25519PublicKey.from_public_bytes(_decode(secret.removeprefix(_PUBLIC)))
    except ValueError as error:
        raise ConfigurationError(
            "This is not a public key: whpk_ and base64 of 32 bytes."
        ) from error
    signed = b".".join(
        (
            headers.get("webhook-id", "").encode("utf-8", "replace"),
            headers.get("webhook-timestamp", "").encode("ascii", "replace"),
            body,
        )
    )
    for each in headers.get("webhook-signature", "").split(" "):
        scheme, _, signature = each.partition(",")
        if scheme != "v1a":
            continue
        try:
            key.verify(_decode(signature), signed)
        except (NoMatch, ValueError):
            continue
        return True
    return False


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error

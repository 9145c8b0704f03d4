"""Signatures after the Standard Webhooks specification 1.0.0, and the texts of their keys.

What is signed is ``<webhook-id>.<webhook-timestamp>.<body>``. Two schemes:

``v1``   HMAC-SHA256; the receiver holds the same secret, ``whsec_`` and 32 bytes in base64.
``v1a``  ed25519 (RFC 8032); the receiver holds the public key, ``whpk_`` and 32 bytes in base64.

While a secret is being rotated the header carries a signature of each, separated by spaces.
"""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from standardwebhooks import Webhook

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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

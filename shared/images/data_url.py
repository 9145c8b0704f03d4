"""Images inside JSON: `data:image/png;base64,…` (RFC 2397), bounded before it is decoded."""

import base64
import binascii
import re

from shared.images.errors import ImageNotRecognized, ImageTooLarge

# The type is checked for form only: what the bytes are is for the bytes to say.
_PREFIX = re.compile(r"data:image/(?:png|jpeg|webp);base64,", re.ASCII | re.IGNORECASE)


def parse_data_url(text: str, max_bytes: int) -> bytes:
    """The file in `text`, at most `max_bytes` bytes, not yet looked at.

    Raises `ImageNotRecognized` when `text` is not a base64 `data:` URL of a PNG, JPEG or WebP
    image, and `ImageTooLarge` from its length alone, before anything is decoded.
    """
    prefix = _PREFIX.match(text)
    if prefix is None:
        raise ImageNotRecognized(
            "Expected data:image/png;base64,… (or image/jpeg, image/webp) with the file's bytes."
        )
    start = prefix.end()
    if (len(text) - start) // 4 * 3 > max_bytes + 2:
        raise ImageTooLarge(f"An image may have {max_bytes} bytes at most.")
    try:
        data = base64.b64decode(text[start:], validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII.
        raise ImageNotRecognized("What follows base64, is not valid base64.") from None
    if len(data) > max_bytes:
        raise ImageTooLarge(f"An image may have {max_bytes} bytes at most.")
    return data

"""Image files of users: recognised by their first bytes, or refused with a stable code."""

from typing import ClassVar, NamedTuple


class ImageRefused(Exception):
    """The user's file is at fault, whenever it is sent; the message says why and may be shown."""

    code: ClassVar[str]


class ImageTooLarge(ImageRefused):
    """The file has more bytes than the limit."""

    code = "image_too_large"


class ImageNotRecognized(ImageRefused):
    """The bytes are not those of a PNG, JPEG or WebP file, whatever the name or type says."""

    code = "image_not_recognized"


class ImageDimensions(ImageRefused):
    """A side has fewer or more pixels than the limits allow."""

    code = "image_dimensions"


class ImageAnimated(ImageRefused):
    """The file holds more than one frame."""

    code = "image_animated"


class ImageTruncated(ImageRefused):
    """The file ends before its image does."""

    code = "image_truncated"


class ImageMetadataTooLarge(ImageRefused):
    """A text chunk, EXIF block or colour profile is absurdly large."""

    code = "image_metadata_too_large"


class ImageUndecodable(ImageRefused):
    """The data are damaged, or decoding them takes more time or memory than is allowed."""

    code = "image_undecodable"


class ImageDecoderUnavailable(Exception):
    """The decoder cannot be started, or all decoders stay busy: worth another try."""


REFUSALS = {refusal.code: refusal for refusal in ImageRefused.__subclasses__()}
"""Every code a refusal can carry, and its exception."""

# It spares a process for most junk, and refuses a canvas of gigabytes before anything knows how
# to allocate one. What it lets through is checked again by the decoder.
#
# Sources: PNG (ISO/IEC 15948) 11.2.2 IHDR, 11.2.5 IEND; JPEG (ITU-T T.81) annex B markers; RFC
# 9649 (WebP) 2.4 to 2.7.

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xae\x42\x60\x82"  # Its type and checksum, always the same.
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_SHORTEST_HEADER = 33  # A PNG's signature and IHDR; the WebP headers end at byte 30.


class Header(NamedTuple):
    """`format` is Pillow's name for it; `size` is (width, height), or None where it is not in
    the first bytes (JPEG, whose decoder reads it without allocating)."""

    format: str
    size: tuple[int, int] | None


def read_header(data: bytes) -> Header:
    """Recognise PNG, JPEG or WebP by content.

    Raises `ImageNotRecognized` for anything else and `ImageTruncated` for a file that visibly
    lacks its end.
    """
    if data.startswith(_PNG_SIGNATURE):
        header = Header("PNG", _png_size(data))
        whole = _PNG_END in data
    elif data.startswith(_JPEG_START):
        header = Header("JPEG", None)
        whole = _JPEG_END in data
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = Header("WEBP", _webp_size(data))
        whole = 8 + int.from_bytes(data[4:8], "little") <= len(data)
    else:
        raise ImageNotRecognized("Only PNG, JPEG and WebP images are accepted.")
    if not whole:
        raise ImageTruncated("The file ends before its image does.")
    return header


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < _SHORTEST_HEADER:
        raise ImageTruncated("The file ends within its header.")
    if data[12:16] != b"IHDR":
        raise ImageNotRecognized("A PNG begins with its IHDR chunk; this file does not.")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _webp_size(data: bytes) -> tuple[int, int]:
    if len(data) < _SHORTEST_HEADER - 3:
        raise ImageTruncated("The file ends within its header.")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(part, "little") for part in (data[24:27], data[27:30]))
        return width + 1, height + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(part, "little") for part in (data[26:28], data[28:30]))
        return width & 0x3FFF, height & 0x3FFF
    raise ImageNotRecognized("The first chunk of this WebP file is not one of WebP's.")

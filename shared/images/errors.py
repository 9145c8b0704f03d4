"""Why an image is refused: one exception type per cause, each with a stable code.

The tree, drawn once::

    ImageRefused                 the user's file is at fault; asking again changes nothing
    ├── ImageTooLarge            image_too_large            more bytes than the limit
    ├── ImageNotRecognized       image_not_recognized       not a PNG, JPEG or WebP
    ├── ImageDimensions          image_dimensions           a side is too short or too long
    ├── ImageAnimated            image_animated             more than one frame
    ├── ImageTruncated           image_truncated            the file ends before its image does
    ├── ImageMetadataTooLarge    image_metadata_too_large   absurd text, EXIF or colour profile
    └── ImageUndecodable         image_undecodable          damaged, or too costly to decode
    ImageDecoderUnavailable      the server is at fault, or busy: worth another try
"""

from typing import ClassVar


class ImageRefused(Exception):
    """The file cannot be taken as an image; the message says why and may be shown to the user."""

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
    """The decoder cannot be started, or all decoders stay busy; nothing is said of the image."""


REFUSALS: dict[str, type[ImageRefused]] = {
    refusal.code: refusal
    for refusal in (
        ImageTooLarge,
        ImageNotRecognized,
        ImageDimensions,
        ImageAnimated,
        ImageTruncated,
        ImageMetadataTooLarge,
        ImageUndecodable,
    )
}
"""Every code a refusal can carry, and its exception."""

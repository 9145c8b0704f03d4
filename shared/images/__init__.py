"""Images from users: refused with a stable code, or made into a clean RGB PNG."""

from shared.images.errors import (
    ImageAnimated,
    ImageDecoderUnavailable,
    ImageDimensions,
    ImageMetadataTooLarge,
    ImageNotRecognized,
    ImageRefused,
    ImageTooLarge,
    ImageTruncated,
    ImageUndecodable,
)
from shared.images.intake import CleanImage, ImageLimits, parse_data_url, sanitize_image

__all__ = [
    "CleanImage",
    "ImageAnimated",
    "ImageDecoderUnavailable",
    "ImageDimensions",
    "ImageLimits",
    "ImageMetadataTooLarge",
    "ImageNotRecognized",
    "ImageRefused",
    "ImageTooLarge",
    "ImageTruncated",
    "ImageUndecodable",
    "parse_data_url",
    "sanitize_image",
]

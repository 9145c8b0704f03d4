"""The decoder process: reads one untrusted image on stdin, writes a clean RGB PNG to stdout.

`shared.images.intake` runs this file by its path in a fresh interpreter, one process per image
(it says why), so it imports the standard library and Pillow only. Its one argument is a JSON
object: `format`, `min_side`, `max_side`, `max_metadata_bytes`, `memory_bytes`, `cpu_seconds`,
`output_bytes`, and `fit_side`: null, or the square in pixels that the picture is to fit into. Its
answer is one line of JSON, `{"width": …, "height": …}`, followed by the PNG, or
`{"refused": code, "detail": …}` alone. A process that ends without an answer was stopped by its own
limits or by a crash in a decoder.
"""

import io
import json
import os
import resource
import sys
import warnings
from typing import Any, BinaryIO, Literal

from PIL import Image, ImageCms, PngImagePlugin, WebPImagePlugin

# TIFF 6.0: tag 0x0112, type SHORT (3), values 1 to 8.
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The profiles of cameras and phones are 0.5 to 4 kB of matrices and curves. Print profiles are
# megabytes of tables: they are dropped, for they cost more than a starting image gains.
_LARGEST_ICC_TO_APPLY = 64 * 1024
# Imported to be registered: without it Pillow would load all of its 43 formats to find WebP.
assert WebPImagePlugin.SUPPORTED  # noqa: S101


class Refused(Exception):
    """This image is refused; `code` is stable, `detail` is a sentence for the user."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


def confine(memory_bytes: int, cpu_seconds: int, output_bytes: int) -> None:
    """Give up, for good, what decoding one image does not need."""
    os.nice(5)  # A hostile picture must not slow the API beside it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    if sys.platform == "linux":  # macOS does not enforce it.
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block; 1 when it has none or is malformed.

    Looks at the entries of the first directory in place. A general EXIF parser copies every
    entry's value, and each of thousands of entries may claim the whole block as its value.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"]
    if tiff[:4] == b"II*\0":
        order = "little"
    elif tiff[:4] == b"MM\0*":
        order = "big"
    else:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for index in range(min(number(directory, 2), len(tiff) // 12)):
        entry = directory + 2 + 12 * index
        if number(entry, 2) == _ORIENTATION_TAG and number(entry + 2, 2) == _SHORT:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def open_checked(source: BinaryIO, limits: dict[str, Any]) -> Image.Image:
    """Open as the one format named, and check all that can be checked before decoding."""
    smallest, largest = limits["min_side"], limits["max_side"]
    # Pillow refuses at twice this figure; for WebP it does so before it allocates the canvas.
    Image.MAX_IMAGE_PIXELS = largest * largest // 2
    # These bound what compressed text and ICC chunks of a PNG may unpack to.
    PngImagePlugin.MAX_TEXT_CHUNK = limits["max_metadata_bytes"]
    PngImagePlugin.MAX_TEXT_MEMORY = limits["max_metadata_bytes"]
    warnings.simplefilter("ignore")
    image = Image.open(source, formats=(limits["format"],))
    if not all(smallest <= side <= largest for side in image.size):
        raise Refused(
            "image_dimensions",
            f"{image.width} × {image.height} pixels: a side must have {smallest} to {largest}.",
        )
    # A phone's MPO is a whole JPEG with a second view behind it, of which nothing is ever read.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Refused("image_animated", "It is animated: one frame only is accepted.")
    refuse_large_metadata(image, limits["max_metadata_bytes"])
    return image


def refuse_large_metadata(image: Image.Image, largest: int) -> None:
    """Blocks that no camera or program writes are a sign of an attack on some later reader."""
    for name in ("icc_profile", "exif", "xmp"):
        if len(image.info.get(name) or b"") > largest:
            raise Refused(
                "image_metadata_too_large", f"Its {name} block has more than {largest} bytes."
            )


def to_rgb(image: Image.Image) -> Image.Image:
    """The pixels as 8-bit RGB: 16-bit grey scaled, transparency laid over white."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255.
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5, "L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    flat = Image.new("RGB", layer.size, "white")
    flat.paste(layer, mask=layer.getchannel("A"))
    return flat


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """The RGB `image` in sRGB where `icc` is a small RGB profile; else unchanged.

    Worth its few lines because phones tag photographs as Display P3, and dropping that tag
    visibly fades them; safe enough because this process is confined and ends with the image.
    """
    if not icc or len(icc) > _LARGEST_ICC_TO_APPLY or icc[16:20] != b"RGB ":
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), inPlace=True)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image  # A profile that cannot be used says nothing against the pixels.
    return image


def clean(source: BinaryIO, limits: dict[str, Any]) -> Image.Image:
    """The picture in RGB, upright, with nothing of the file left but its pixels."""
    image = open_checked(source, limits)
    image.load()
    refuse_large_metadata(image, limits["max_metadata_bytes"])  # PNG: also behind the pixels.
    tagged_rgb = image.mode.startswith("RGB")
    icc, exif = image.info.get("icc_profile"), image.info.get("exif") or b""
    rgb = to_rgb(image)
    if tagged_rgb:
        rgb = to_srgb(rgb, icc)
    turn = _TURNS.get(exif_orientation(exif))
    if turn is not None:
        rgb = rgb.transpose(turn)
    if limits["fit_side"] is not None:
        rgb.thumbnail((limits["fit_side"], limits["fit_side"]))
    rgb.info = {}
    return rgb


def refusal(error: Exception) -> Refused:
    """The stable code for whatever Pillow raised on this image."""
    text = str(error).lower()
    if isinstance(error, Refused):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return Refused("image_dimensions", "It has more pixels than are accepted.")
    if "truncated" in text or isinstance(error, EOFError):
        return Refused("image_truncated", "The file ends before its image does.")
    if "max_text" in text or "too much memory" in text:
        return Refused("image_metadata_too_large", "Its text or colour profile is too large.")
    if isinstance(error, MemoryError):
        return Refused("image_undecodable", "Decoding it takes more memory than is allowed.")
    return Refused("image_undecodable", "Its data are damaged.")


def main() -> None:
    limits = json.loads(sys.argv[1])
    confine(limits["memory_bytes"], limits["cpu_seconds"], limits["output_bytes"])
    answer = sys.stdout.buffer
    try:
        image = clean(sys.stdin.buffer, limits)
    except Exception as error:
        refused = refusal(error)
        answer.write(json.dumps({"refused": refused.code, "detail": refused.detail}).encode())
        return
    answer.write(json.dumps({"width": image.width, "height": image.height}).encode() + b"\n")
    # Level 1 takes a third of the default's time and is as lossless.
    image.save(answer, "PNG", compress_level=1)


if __name__ == "__main__":
    main()

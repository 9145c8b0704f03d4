"""The decoder process: reads one untrusted image on stdin, writes a clean PNG to stdout.

`shared.images.intake` runs this file by its path in a fresh interpreter, one process per image
(it says why), so it imports the standard library and Pillow only. Its one argument is a JSON
object: `format`, `min_side`, `max_side`, `max_metadata_bytes`, `memory_bytes`, `cpu_seconds`,
`output_bytes`, and `fit_side`: null, or the square in pixels that the image is to fit into. Its
answer is one line of JSON, `{"width": …, "height": …}`, followed by the PNG, or
`{"refused": code, "detail": …}` alone. A process that ends without an answer was stopped by its own
limits or by a crash in a decoder.
"""

import hashlib
import io
import json
import os
import re
import resource
import sys
import warnings
import zlib
from typing import Any, BinaryIO, Literal

from PIL import Image, ImageChops, ImageCms, PngImagePlugin, WebPImagePlugin

# TIFF 6.0: tag 0x0112, type SHORT (3), values 1 to 8.
_ORIENTATION_TAG = 0x0112
_SHORT = 3
_ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_FIRST_CHUNK = 8
_SOI, _EOI = 0xD8, 0xD9
# Any marker but fill bytes, stuffed zeros and restarts, which stand inside a scan.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_OTHER_PADDING = bytes((37 * n + 11) % 251 for n in range(256))  # never 0xFF: no marker in it
_CUT = "The file ends before its image does."
_ROWS_AT_ONCE = 256
_ROUNDING = 2
_OPAQUE = 255
_GAMMA_NEAR = 0.03  # 1/2.2 and sRGB's own 0.45455 are no reason to change a pixel
# Imported to be registered: without it Pillow would load all of its 43 formats to find WebP.
assert WebPImagePlugin.SUPPORTED  # noqa: S101


class Refused(Exception):
    """This image is refused; `code` is stable, `detail` is a sentence for the user."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


def confine(memory_bytes: int, cpu_seconds: int, output_bytes: int) -> None:
    """Irreversibly cap memory, processor time and output size."""
    os.nice(5)  # A hostile image must not slow the API beside it.
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


# --- Whether the file is whole ------------------------------------------------------------------


def check_png(data: bytes) -> None:
    """Every chunk up to IEND against its checksum, which Pillow skips for IDAT (PNG 5.3, 5.5)."""
    at = _PNG_FIRST_CHUNK
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        view = memoryview(data)
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise Refused("image_undecodable", "Its data are damaged: a checksum is wrong.")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise Refused("image_truncated", _CUT)


def end_of_jpeg(data: bytes) -> int:
    """Where the EOI marker of the image stands, and the fill bytes before it (T.81, B.1.1.2).

    A thumbnail's inside EXIF is not it.
    """
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        at, kind = marker.end(), marker[0][-1]
        if kind == _EOI:
            return len(data[: marker.start()].rstrip(b"\xff"))
        if kind != _SOI:
            at += int.from_bytes(data[at : at + 2], "big")
    raise Refused("image_truncated", _CUT)


def check_jpeg(image: Image.Image, data: bytes, limits: dict[str, Any]) -> None:
    """Refuse data that end before the image, although an EOI marker follows.

    libjpeg pads what is missing with zeros and Pillow does not pass its warning on. So the image is
    decoded again with other padding before the marker: of a whole image not a pixel depends on it.
    """
    end = end_of_jpeg(data)
    padded = io.BytesIO(data[:end] + _OTHER_PADDING + data[end:])
    again = open_checked(padded, limits)
    again.load()
    if digest(again) != digest(image):
        raise Refused("image_truncated", _CUT)


def digest(image: Image.Image) -> bytes:
    """Of the pixels, some rows at a time: a copy of all of them would cost as much memory."""
    pixels = hashlib.blake2b()
    for top in range(0, image.height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, image.height)
        pixels.update(image.crop((0, top, image.width, bottom)).tobytes())
    return pixels.digest()


# --- Colours ------------------------------------------------------------------------------------


def to_srgb(image: Image.Image, rawmode: str, keep_alpha: bool) -> Image.Image:
    """The pixels as 8-bit RGB in sRGB: 16-bit grey scaled, transparency laid over white.

    With `keep_alpha` it stands beside them, for masks; the colours are the same with and without.
    """
    alpha = opacity(image, rawmode)
    image.info.pop("transparency", None)
    colours = image
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255.
        colours = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode in ("1", "LA", "La"):
        colours = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK"):
        colours = image.convert("RGB")
    rgb = with_profile(colours, image.info.get("icc_profile"))
    if rgb is None:
        rgb = with_gamma(colours.convert("RGB"), image.info)
    if alpha is not None:
        rgb.paste("white", mask=ImageChops.invert(alpha))
        if keep_alpha and alpha.getextrema()[0] != _OPAQUE:
            rgb.putalpha(alpha)
    return rgb


def opacity(image: Image.Image, rawmode: str) -> Image.Image | None:
    """The mask of what is opaque; None where all is."""
    if not image.has_transparency_data:
        return None
    clear = image.info.get("transparency")
    if image.mode == "I;16" and isinstance(clear, int):
        opaque = [255] * 65536
        opaque[clear] = 0
        return image.convert("I").point(opaque, "L")
    # PNG counts the transparent colour in the file's bits, of which Pillow makes eight.
    if image.mode == "L" and isinstance(clear, int):
        bits = int(rawmode[2:]) if rawmode[:2] == "L;" else 8
        image.info["transparency"] = clear * 255 // (2**bits - 1)
    elif rawmode == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in clear)
    return (image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A")


def with_profile(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    """The image in sRGB by its profile; None where that is none, not of its kind, or sRGB itself.

    Worth its few lines because phones tag photographs as Display P3, and dropping that tag
    visibly fades them; safe enough because this process is confined and ends with the image.
    """
    kind = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}[image.mode]
    if not icc or icc[16:20] != kind:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, image.mode, "RGB")
        if image.mode != "CMYK" and changes_little(transform, image.mode):
            return None
        return applied(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # A profile that cannot be used says nothing against the pixels.


def changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether it moves no colour by more than rounding does: the profile is sRGB in all but name.

    Judged by what it does. Descriptions say "sRGB" of linear profiles, too.
    """
    probe = Image.linear_gradient("L")
    if mode == "RGB":
        turned = probe.transpose(Image.Transpose.ROTATE_90)
        planes = [Image.merge("RGB", (probe, turned, Image.new("L", probe.size, blue)))
                  for blue in range(0, 256, 51)]  # fmt: skip
        probe = Image.new("RGB", (probe.width, probe.height * len(planes)))
        for number, plane in enumerate(planes):
            probe.paste(plane, (0, number * plane.height))
    moved = ImageChops.difference(applied(probe, transform), probe.convert("RGB"))
    return max(moved.tobytes()) <= _ROUNDING


def applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """A copy of the image, transformed."""
    transformed = ImageCms.applyTransform(image, transform)
    if transformed is None:  # only for a change in place
        raise TypeError
    return transformed


def with_gamma(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """A PNG's gAMA applied, where it has neither a profile nor an sRGB chunk (PNG 13.13)."""
    gamma = info.get("gamma")
    if not gamma or "srgb" in info or "icc_profile" in info or abs(gamma * 2.2 - 1) < _GAMMA_NEAR:
        return image
    curve = [round(255 * srgb_of((value / 255) ** (1 / gamma))) for value in range(256)]
    return image.point(curve * 3)


def srgb_of(light: float) -> float:
    """Linear light 0 … 1 as sRGB encodes it (IEC 61966-2-1)."""
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


# --- The whole way ------------------------------------------------------------------------------


def exif_of(image: Image.Image) -> bytes:
    """The EXIF block; ImageMagick used to write it into PNGs as text, in hexadecimal."""
    block = image.info.get("exif")
    for name in ("Raw profile type exif", "Raw profile type APP1"):
        text = image.info.get(name)
        if not block and isinstance(text, str):
            try:
                block = bytes.fromhex("".join(text.split("\n")[3:]))
            except ValueError:
                continue
    return block or b""


def clean(source: BinaryIO, limits: dict[str, Any]) -> Image.Image:
    """The image in RGB or RGBA, upright, with nothing of the file left but its pixels."""
    data = source.read()
    image = open_checked(io.BytesIO(data), limits)
    if limits["format"] == "PNG":
        check_png(data)
    tiles = getattr(image, "tile", [])
    rawmode = str(tiles[0].args) if tiles else ""
    image.load()
    refuse_large_metadata(image, limits["max_metadata_bytes"])  # PNG: also behind the pixels.
    if limits["format"] == "JPEG":
        check_jpeg(image, data, limits)
    rgb = to_srgb(image, rawmode, keep_alpha=limits["fit_side"] is None)
    turn = _ROTATIONS.get(exif_orientation(exif_of(image)))
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
        return Refused("image_truncated", _CUT)
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

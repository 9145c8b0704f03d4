"""Hostile image files, made from fixed seeds, and what each may come to.

`Case.outcome` is the refusal's code, "clean" for a file that must pass, or None where either a
typed refusal or a clean image will do (random damage may miss everything that matters).
"""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from tests.images import encode

SIDE = 96
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Case(NamedTuple):
    name: str
    made: bytes | Callable[[], bytes]
    """Those that take their time are made only where they are looked at."""
    outcome: str | None

    @property
    def data(self) -> bytes:
        """The file."""
        return self.made if isinstance(self.made, bytes) else self.made()


def make_image(mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A gradient with no symmetry, so that a wrong turn or a lost channel shows."""
    across = Image.linear_gradient("L").resize(size)
    down = across.transpose(Image.Transpose.ROTATE_90).resize(size)
    rgb = Image.merge("RGB", (across, down, Image.new("L", size, 40)))
    if mode in {"RGBA", "LA"}:
        image = rgb.convert(mode)
        image.putalpha(down)
        return image
    return rgb.convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    """One PNG chunk with a right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    bits: int = 8,
    colour: int = 2,
    *,
    data: bytes = b"",
    extra: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A PNG from its parts, however little they fit each other."""
    ihdr = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", ihdr) + extra + chunk(b"IDAT", data) + behind + chunk(b"IEND", b"")
    return PNG_SIGNATURE + body


def with_chunk(image: bytes, extra: bytes) -> bytes:
    """`image`, a PNG, with a chunk put in behind its IHDR."""
    return image[:33] + extra + image[33:]


@cache
def zeros(count: int) -> bytes:
    """`count` zero bytes, deflated without holding them."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(65536)) for _ in range(count // 65536)]
    return b"".join([*parts, packer.compress(bytes(count % 65536)), packer.flush()])


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_canvas(width: int, height: int, chunks: bytes) -> bytes:
    """A VP8X WebP that claims a canvas, whatever its chunks hold."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + webp_chunk(b"VP8X", b"\x3e\0\0\0" + canvas) + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """`data` with another size in its SOF marker: all the claim, none of the pixels."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def bombs() -> Iterator[Case]:
    """Little files that claim, or hold, enormous images."""
    jpeg = encode(make_image(), "JPEG")
    for width, height in [
        (5000, 5000), (30000, 30000), (100_000, 1), (1, 100_000), (4097, 4096), (4096, 4097),
        (2**31 - 1, 2**31 - 1), (65, 2**30), (0, 0), (0, 64), (63, 64), (64, 63), (1, 1),
    ]:  # fmt: skip
        yield Case(f"png {width}x{height}", png(width, height), "image_dimensions")
    for bits, colour in [(1, 0), (2, 0), (4, 0), (1, 3), (8, 3), (16, 0), (16, 2), (16, 6)]:
        yield Case(
            f"png giant, {bits} bits, colour type {colour}",
            png(30000, 30000, bits, colour, data=zeros(30000 * 30000 // 64)),
            "image_dimensions",
        )
    yield Case("png 1-bit giant, whole", lambda: encode(Image.new("1", (9000, 9000)), "PNG"),
               "image_dimensions")  # fmt: skip
    for width, height in [(65535, 65535), (65535, 64), (64, 65535), (4097, 64), (63, 63), (1, 1)]:
        yield Case(f"jpeg {width}x{height}", resized_jpeg(jpeg, width, height), "image_dimensions")
    for width, height in [(16384, 16384), (2**24, 2**24), (4097, 64), (63, 64), (2**24, 1)]:
        yield Case(f"webp {width}x{height}", webp_canvas(width, height, b""), "image_dimensions")
    yield Case("webp lossless giant", lambda: encode(Image.new("RGB", (12000, 12000)), "WEBP",
               lossless=True, method=0), "image_dimensions")  # fmt: skip
    # More pixels in the data than the header says, and fewer.
    yield Case("png overfull", lambda: png(64, 64, data=zeros(50_000_000)), None)
    yield Case("png hollow", png(4096, 4096, data=zeros(1000)), "image_truncated")
    yield Case("png no data", png(64, 64), "image_truncated")


def metadata_bombs() -> Iterator[Case]:
    """Text, profiles and EXIF blocks that unpack to absurd sizes."""
    plain = encode(make_image(), "PNG")

    def bomb(kind: bytes, head: bytes) -> bytes:
        return chunk(kind, head + zeros(200_000_000))

    def itxt() -> bytes:
        return bomb(b"iTXt", b"k\0\1\0\0\0")

    too_large = "image_metadata_too_large"
    yield Case("png zTXt bomb", lambda: with_chunk(plain, bomb(b"zTXt", b"k\0\0")), too_large)
    yield Case("png iTXt bomb", lambda: with_chunk(plain, itxt()), too_large)
    yield Case("png iCCP bomb", lambda: with_chunk(plain, bomb(b"iCCP", b"p\0\0")), too_large)
    yield Case("png iTXt bomb behind", lambda: plain[:-12] + itxt() + plain[-12:], too_large)
    many = chunk(b"zTXt", b"k\0\0" + zeros(900_000)) * 100
    yield Case("png 100 zTXt bombs", with_chunk(plain, many), too_large)
    yield Case("png 60,000 tEXt", with_chunk(plain, chunk(b"tEXt", b"k\0" + b"x" * 100) * 60_000),
               too_large)  # fmt: skip
    big = random.Random(1).randbytes(6_000_000)
    yield Case("png eXIf 6 MB", with_chunk(plain, chunk(b"eXIf", b"II*\0" + big)), too_large)
    yield Case("png eXIf 6 MB behind", plain[:-12] + chunk(b"eXIf", big) + plain[-12:], too_large)
    yield Case(
        "png iCCP not a profile", encode(make_image(), "PNG", icc_profile=big[:9000]), "clean"
    )
    yield Case("jpeg icc 6 MB", encode(make_image(), "JPEG", icc_profile=big), too_large)
    yield Case("jpeg icc junk", encode(make_image(), "JPEG", icc_profile=b"x" * 500), "clean")
    for kind in ("exif", "icc_profile", "xmp"):
        yield Case(f"webp {kind} 6 MB", encode(make_image(), "WEBP", **{kind: big}), too_large)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("parameters", "a photograph of a fox " * 50)
    yield Case("png with ordinary text", encode(make_image(), "PNG", pnginfo=text), "clean")
    for seed in range(6):
        yield Case(f"jpeg exif of junk {seed}", encode(make_image(), "JPEG", exif=exif_junk(seed)),
                   None)  # fmt: skip


def exif_junk(seed: int) -> bytes:
    """A directory of thousands of entries that each claim the whole block as their value."""
    rng = random.Random(seed)
    count = rng.choice([1, 100, 5000])
    entries = b"".join(
        struct.pack("<HHII", rng.randrange(65536), rng.choice([1, 2, 7, 99]), 2**16, seed)
        for _ in range(count)
    )
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + entries


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG whose last, almost empty, scan is repeated: small, and hours to decode."""
    data = encode(Image.new("RGB", (4096, 4096)), "JPEG", progressive=True, quality=10)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    return data[:-2] + data[tables:-2] * scans + b"\xff\xd9"


def odd_but_honest() -> Iterator[Case]:
    """Files that cameras and programs do make; they must come through."""
    for mode, image_format in [
        ("RGB", "PNG"), ("RGBA", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("P", "PNG"),
        ("I;16", "PNG"), ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"),
        ("RGBA", "WEBP"), ("L", "WEBP"),
    ]:  # fmt: skip
        source = Image.new("I;16", (SIDE, SIDE), 40000) if mode == "I;16" else make_image(mode)
        yield Case(f"{image_format} {mode}", encode(source, image_format), "clean")
    # The costliest that the limits let through, in memory and in time.

    def vast(mode: str) -> Image.Image:
        return Image.new(mode, (4096, 4096), (9, 8, 7, 100))

    yield Case("vast webp", lambda: encode(vast("RGBA"), "WEBP", lossless=True, method=0), "clean")
    yield Case("vast jpeg", lambda: encode(vast("CMYK"), "JPEG", progressive=True), "clean")
    yield Case("webp lossless", encode(make_image(), "WEBP", lossless=True), "clean")
    yield Case("jpeg progressive", encode(make_image(), "JPEG", progressive=True), "clean")
    yield Case(
        "jpeg cmyk progressive", encode(make_image("CMYK"), "JPEG", progressive=True), "clean"
    )
    yield Case("png interlaced size limits", encode(make_image(size=(64, 4096)), "PNG"), "clean")
    for bits, colour in [(16, 2), (16, 4), (16, 6), (2, 0), (4, 0), (4, 3)]:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        row = 1 + (64 * bits * channels + 7) // 8
        palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
        yield Case(f"png {bits} bits, colour type {colour}",
                   png(64, 64, bits, colour, data=zeros(row * 64), extra=palette),
                   "clean")  # fmt: skip
    for name, kind, body in [("grey", 0, b"\0\7"), ("rgb", 2, b"\0\1\0\2\0\3")]:
        row = 1 + 64 * (1 if kind == 0 else 3)
        yield Case(f"png {name} with a transparent colour",
                   png(64, 64, 8, kind, data=zeros(row * 64), extra=chunk(b"tRNS", body)),
                   "clean")  # fmt: skip
    for image_format in ("JPEG", "PNG", "WEBP"):
        for orientation in range(10):
            exif = Image.Exif()
            exif[0x0112] = orientation
            yield Case(f"{image_format} orientation {orientation}",
                       encode(make_image(), image_format, exif=exif), "clean")  # fmt: skip


def polyglots() -> Iterator[Case]:
    """Images that are something else as well. The pixels pass, the rest must be gone."""
    for image_format in ("PNG", "JPEG", "WEBP"):
        image = encode(make_image(), image_format)
        for name, tail in [
            ("zip", b"PK\3\4EVIL" + bytes(100)), ("html", b"<script>alert('EVIL')</script>"),
            ("php", b"<?php EVIL(); ?>"), ("pdf", b"%PDF-1.7 EVIL"), ("rar", b"Rar!\x1a\7EVIL"),
        ]:  # fmt: skip
            yield Case(f"{image_format} and {name}", image + tail, "clean")
    comment = encode(make_image(), "JPEG", comment=b"<script>EVIL</script>")
    yield Case("jpeg with a script for a comment", comment, "clean")
    for name, head in [("zip", b"PK\3\4"), ("html", b"<html>"), ("gif", b"GIF89a"), ("nul", b"\0")]:
        image = encode(make_image(), "PNG")
        yield Case(f"{name} before png", head + image, "image_not_recognized")


def animations() -> Iterator[Case]:
    frames = [make_image(), make_image().transpose(Image.Transpose.ROTATE_90)]
    for image_format in ("PNG", "WEBP"):
        data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=9)
        yield Case(f"animated {image_format}", data, "image_animated")
        many = encode(frames[0], image_format, save_all=True, append_images=frames * 20)
        yield Case(f"animated {image_format}, 41 frames", many, "image_animated")
    actl = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield Case("png that claims 2^31 frames", with_chunk(encode(frames[0], "PNG"), actl), None)


def strangers() -> Iterator[Case]:
    """Every other format that Pillow writes, and things that are no images."""
    for image_format in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS",
                         "EPS", "PDF", "JPEG2000", "ICNS", "MSP", "XBM", "DIB", "SPIDER", "QOI",
                         "AVIF"):  # fmt: skip
        Image.init()
        if image_format not in Image.SAVE:
            continue
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(image_format, "RGB")
        image = make_image("L").convert(mode) if mode != "RGB" else make_image()
        yield Case(f"{image_format}", encode(image, image_format), "image_not_recognized")
    for name, data in [
        ("zero bytes", b""), ("one byte", b"\x89"), ("svg", b"<svg onload='alert(1)'/>"),
        ("text", b"hello" * 100), ("elf", b"\x7fELF" + bytes(500)), ("zeros", bytes(1000)),
        ("fits", b"SIMPLE  =                    T" + b" " * 2850), ("psd", b"8BPS" + bytes(100)),
        ("riff wave", b"RIFF\x24\0\0\0WAVEfmt " + bytes(100)),
        ("webp of nothing", b"RIFF\x1c\0\0\0WEBPXXXX" + bytes(20)),
        ("mng", b"\x8aMNG\r\n\x1a\n" + bytes(50)), ("png, no IHDR", PNG_SIGNATURE + bytes(50)),
    ]:  # fmt: skip
        yield Case(name, data, "image_not_recognized")


def cut_short() -> Iterator[Case]:
    # With this seed no cut falls between two scans, where a progressive image is whole.
    values = random.Random(20261128).randbytes(SIDE * SIDE)
    noise = Image.frombytes("L", (SIDE, SIDE), values).convert("RGB")
    for image_format in ("PNG", "JPEG", "WEBP"):
        data = encode(noise, image_format)
        for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99):
            cut = data[: max(12, int(len(data) * share))]
            yield Case(f"{image_format} cut at {share:.0%}", cut, "image_truncated")
        yield Case(f"{image_format} without its last byte", data[:-1], "image_truncated")
    thumbnail = b"Exif\0\0II*\0" + encode(noise.resize((16, 16)), "JPEG")
    variants: list[tuple[str, dict[str, Any]]] = [
        ("baseline", {}), ("progressive", {"progressive": True}), ("small", {"quality": 5}),
        ("with restarts", {"restart_marker_blocks": 4}), ("with a thumbnail", {"exif": thumbnail}),
    ]  # fmt: skip
    for name, options in variants:
        for mode in ("RGB", "L", "CMYK"):
            whole = encode(noise.convert(mode), "JPEG", **options)
            yield Case(f"jpeg {name} {mode}", whole, "clean")
            for share in (0.5, 0.8, 0.95, 0.99):
                cut = whole[: int(len(whole) * share)]
                yield Case(f"jpeg {name} {mode} cut at {share:.0%}, with an end marker",
                           cut + b"\xff\xd9", "image_truncated")  # fmt: skip
    whole = encode(noise, "JPEG")
    cut = whole[: whole.rindex(b"\xff\x00") + 1]
    yield Case("jpeg cut inside a stuffed byte", cut + b"\xff\xd9", "image_truncated")
    filled = whole[:-2] + b"\xff\xff" + whole[-2:]
    yield Case("jpeg with fill bytes before its end", filled, "clean")
    yield Case("jpeg cut behind its thumbnail", encode(noise, "JPEG", exif=thumbnail)[:4000],
               "image_truncated")  # fmt: skip


def wrong_checksums() -> Iterator[Case]:
    """PNGs with a bit of one chunk's checksum, or of its pixels, turned over."""
    whole = encode(make_image(), "PNG", icc_profile=b"x" * 200)
    for kind in (b"IHDR", b"iCCP", b"IDAT", b"IEND"):
        at = whole.index(kind)
        length = int.from_bytes(whole[at - 4 : at], "big")
        for name, spot in [("checksum", at + 4 + length), ("data", at + 3 + length)]:
            if length or name == "checksum":
                data = bytearray(whole)
                data[spot] ^= 1
                yield Case(f"png {kind.decode()} with a wrong {name}", bytes(data),
                           None if kind in (b"IHDR", b"IEND") else "image_undecodable")  # fmt: skip


def mutants(count: int) -> Iterator[Case]:
    """Random damage to good files, the header and the pixels alike."""
    rng = random.Random(20261122)
    small = (70, 66)
    sources = [
        encode(make_image(size=small), "PNG"), encode(make_image("P", small), "PNG"),
        encode(make_image(size=small), "JPEG"), encode(make_image("CMYK", small), "JPEG"),
        encode(make_image(size=small), "JPEG", progressive=True),
        encode(make_image(size=small), "WEBP"),
        encode(make_image("RGBA", small), "WEBP", lossless=True),
        encode(make_image(size=small), "WEBP", exif=exif_junk(3)[:400]),
    ]  # fmt: skip
    for number in range(count):
        data = bytearray(sources[number % len(sources)])
        for _ in range(rng.choice([1, 2, 5, 20])):
            at = rng.randrange(12, len(data) if rng.random() < 0.5 else min(len(data), 120))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                data[at : at + rng.randrange(1, 9)] = b""
            else:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
        if data[1:4] == b"PNG" and number % 3:
            data = bytearray(repaired(bytes(data)))
        yield Case(f"mutant {number}", bytes(data), None)


def repaired(data: bytes) -> bytes:
    """A damaged PNG with its checksums made right, so that the damage reaches the decoder."""
    fixed, at = data[:8], 8
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4]), len(data) - at - 12)
        fixed += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return fixed


def all_cases(mutant_count: int = 120) -> list[Case]:
    return [
        *bombs(), *metadata_bombs(), *odd_but_honest(), *polyglots(), *animations(), *strangers(),
        *cut_short(), *wrong_checksums(), *mutants(mutant_count),
    ]  # fmt: skip

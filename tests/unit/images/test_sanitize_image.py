"""What a clean image looks like: its pixels, its limits, and what the caller is told."""

import base64
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import IO, Any, TypeVar

import pytest
from PIL import Image, ImageChops, ImageCms, PngImagePlugin

from shared.images import decoder, intake
from shared.images.fitting import resized
from shared.images.formats import (
    ImageDecoderUnavailable,
    ImageDimensions,
    ImageNotRecognized,
    ImageTooLarge,
)
from shared.images.intake import CleanImage, ImageLimits, parse_data_url, sanitize_image
from tests.images import encode
from tests.unit.images.hostile import chunk, make_image, png, with_chunk
from tests.unit.images.profiles import cmyk_profile, gray_profile, rgb_profile

T = TypeVar("T")


@pytest.fixture
def decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's program runs in this process, without its limits: a tenth of a second less for
    each image, where it matters only what becomes of its pixels."""
    for module, name in (
        (Image, "MAX_IMAGE_PIXELS"),
        (PngImagePlugin, "MAX_TEXT_CHUNK"),
        (PngImagePlugin, "MAX_TEXT_MEMORY"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))  # which it sets for itself

    def run(
        arguments: Sequence[str],
        file: IO[bytes],
        _: ImageLimits,
        read: Callable[[IO[bytes]], T],
    ) -> T:
        file.seek(0)
        answer = io.BytesIO()
        with monkeypatch.context() as patched:
            patched.setattr(decoder, "confine", lambda *_: None)
            patched.setattr(sys, "argv", list(arguments))
            patched.setattr(sys, "stdin", SimpleNamespace(buffer=file))
            patched.setattr(sys, "stdout", SimpleNamespace(buffer=answer))
            decoder.main()
        answer.seek(0)
        return read(answer)

    monkeypatch.setattr(intake, "run_confined", run)


def opened(clean: CleanImage) -> Image.Image:
    """Its colours; what was transparent is white in them."""
    image = Image.open(io.BytesIO(clean.data), formats=("PNG",))
    image.load()
    return image.convert("RGB")


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    return max(int(high) for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image_format", "options", "tolerance"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 95}, 12)],
)
def test_pixels_come_through(image_format: str, options: dict[str, object], tolerance: int) -> None:
    data = encode(make_image(size=(80, 120)), image_format, **options)

    clean = sanitize_image(data)

    assert (clean.width, clean.height) == (80, 120)
    assert clean.content_type == "image/png"
    assert clean.sha256 == hashlib.sha256(clean.data).hexdigest()
    assert largest_difference(opened(clean), make_image(size=(80, 120))) <= tolerance


def test_the_same_file_gives_the_same_bytes() -> None:
    data = encode(make_image(), "JPEG")
    assert sanitize_image(data) == sanitize_image(io.BytesIO(data))


TURNS = [
    None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.usefixtures("decoded_here")
def test_exif_orientation_is_applied(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    source = make_image(size=(64, 100))

    clean = sanitize_image(encode(source, image_format, exif=exif, **options))

    turn = TURNS[orientation - 1]
    expected = source if turn is None else source.transpose(turn)
    assert (clean.width, clean.height) == expected.size
    assert largest_difference(opened(clean), expected) == 0


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.usefixtures("decoded_here")
def test_exif_orientation_is_read_in_either_byte_order(order: bytes) -> None:
    little = order == b"II"

    def short(value: int) -> bytes:
        return value.to_bytes(2, "little" if little else "big")

    head = b"II*\0\x08\0\0\0" if little else b"MM\0*\0\0\0\x08"
    count = (1).to_bytes(4, "little" if little else "big")
    exif = b"Exif\0\0" + head + short(1) + short(0x0112) + short(3) + count + short(6) + short(0)
    clean = sanitize_image(encode(make_image(size=(64, 100)), "JPEG", exif=exif))
    assert (clean.width, clean.height) == (100, 64)


def test_transparency_is_kept_but_not_the_colours_under_it() -> None:
    """It may be a mask; what nobody saw of the image stays unseen."""
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 32, 64))
    clean = sanitize_image(encode(image, "PNG"))
    with Image.open(io.BytesIO(clean.data)) as kept:
        assert kept.mode == "RGBA"
        assert kept.getpixel((48, 48)) == (255, 255, 255, 0)
        assert kept.getpixel((10, 10)) == (0, 0, 200, 255)
    opaque = sanitize_image(encode(Image.new("RGBA", (64, 64), (9, 9, 9, 255)), "PNG"))
    with Image.open(io.BytesIO(opaque.data)) as kept:
        assert kept.mode == "RGB"


@pytest.mark.usefixtures("decoded_here")
def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 32, 64))
    image.paste((0, 0, 0, 128), (0, 32, 32, 64))

    clean = opened(sanitize_image(encode(image, "PNG")))

    assert clean.getpixel((48, 48)) == (255, 255, 255)
    assert clean.getpixel((10, 10)) == (0, 0, 200)
    assert clean.getpixel((10, 50)) == (127, 127, 127)


@pytest.mark.usefixtures("decoded_here")
def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    clean = opened(sanitize_image(encode(image, "PNG", transparency=1)))
    assert clean.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
@pytest.mark.usefixtures("decoded_here")
def test_16_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    clean = opened(sanitize_image(encode(Image.new("I;16", (64, 64), value), "PNG")))
    assert clean.getpixel((9, 9)) == (expected,) * 3


def test_cmyk_becomes_rgb() -> None:
    clean = opened(sanitize_image(encode(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG")))
    red, green, blue = clean.getpixel((9, 9))  # type: ignore[misc]
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


def test_a_small_rgb_profile_is_applied_and_dropped() -> None:
    """littleCMS makes no Display P3, so a profile with swapped primaries stands in for it."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"TEMP").replace(b"gXYZ", b"rXYZ").replace(b"TEMP", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))
    image = Image.new("RGB", (64, 64), (200, 10, 10))

    plain = opened(sanitize_image(encode(image, "PNG", icc_profile=srgb)))
    turned = opened(sanitize_image(encode(image, "PNG", icc_profile=swapped)))

    assert plain.getpixel((0, 0)) == (200, 10, 10)
    assert turned.getpixel((0, 0)) != (200, 10, 10)
    assert turned.getpixel((0, 0))[1] > 150  # type: ignore[index]
    assert "icc_profile" not in turned.info


GRAY_55 = 55
"""128 of 255 as linear light, encoded by sRGB, is 188; read as sRGB and made linear, 55."""


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "L"])
@pytest.mark.usefixtures("decoded_here")
def test_a_profile_counts_for_what_it_does_not_for_its_name(image_format: str, mode: str) -> None:
    """Half of the light is 188 in sRGB, and 55 in a linear file is 128."""
    if (image_format, mode) in {("WEBP", "P"), ("JPEG", "P"), ("JPEG", "RGBA"), ("WEBP", "L")}:
        pytest.skip("The format has no such mode.")
    options: dict[str, object] = {"lossless": True} if image_format == "WEBP" else {}
    gray = Image.new("RGB", (64, 64), (GRAY_55,) * 3)
    gray = gray.quantize(2) if mode == "P" else gray.convert(mode)
    made = gray_profile if mode == "L" else rgb_profile
    linear = opened(sanitize_image(encode(gray, image_format, icc_profile=made(1.0), **options)))
    assert linear.getpixel((9, 9)) == pytest.approx((128,) * 3, abs=1)
    usual = opened(sanitize_image(encode(gray, image_format, icc_profile=made(2.2), **options)))
    assert usual.getpixel((9, 9)) == pytest.approx((GRAY_55,) * 3, abs=4)
    assert "icc_profile" not in linear.info


@pytest.mark.usefixtures("decoded_here")
def test_srgb_itself_changes_no_pixel_whatever_it_is_called() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))
    for profile in (srgb, renamed):
        clean = sanitize_image(encode(make_image(), "PNG", icc_profile=profile))
        assert largest_difference(opened(clean), make_image()) == 0


@pytest.mark.usefixtures("decoded_here")
def test_a_profile_is_applied_before_the_image_is_laid_over_white() -> None:
    image = Image.new("RGBA", (64, 64), (GRAY_55, GRAY_55, GRAY_55, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    clean = opened(sanitize_image(encode(image, "PNG", icc_profile=rgb_profile(1.0))))
    assert clean.getpixel((9, 9)) == (255, 255, 255)
    assert clean.getpixel((48, 9)) == pytest.approx((128,) * 3, abs=1)


def test_a_press_profile_is_applied_to_cmyk() -> None:
    inked = Image.new("CMYK", (64, 64), (255, 255, 0, 0))
    plain = opened(sanitize_image(encode(inked, "JPEG")))
    assert max(plain.getpixel((9, 9))) > 200  # type: ignore[arg-type]
    assert min(plain.getpixel((9, 9))) < 50  # type: ignore[arg-type]
    printed = opened(sanitize_image(encode(inked, "JPEG", icc_profile=cmyk_profile())))
    assert min(printed.getpixel((9, 9))) > 245  # type: ignore[arg-type]


@pytest.mark.usefixtures("decoded_here")
def test_a_profile_of_another_kind_of_pixels_is_dropped() -> None:
    for mode, profile in [("RGB", gray_profile(1.0)), ("L", rgb_profile(1.0))]:
        gray = Image.new(mode, (64, 64), (GRAY_55,) * 3 if mode == "RGB" else GRAY_55)
        clean = opened(sanitize_image(encode(gray, "PNG", icc_profile=profile)))
        assert clean.getpixel((9, 9)) == (GRAY_55,) * 3


@pytest.mark.parametrize(
    ("gamma", "extra", "expected"),
    [
        (1.0, b"", 128),
        (0.45455, b"", GRAY_55),
        (1.0, chunk(b"sRGB", b"\0"), GRAY_55),
        (0.0, b"", GRAY_55),
    ],
)
@pytest.mark.usefixtures("decoded_here")
def test_the_gamma_of_a_png_counts_where_nothing_better_is_said(
    gamma: float, extra: bytes, expected: int
) -> None:
    gama = chunk(b"gAMA", struct.pack(">I", round(gamma * 100000)))
    data = encode(Image.new("RGB", (64, 64), (GRAY_55,) * 3), "PNG")
    clean = opened(sanitize_image(with_chunk(data, gama + extra)))
    assert clean.getpixel((9, 9)) == pytest.approx((expected,) * 3, abs=1)


@pytest.mark.parametrize(
    ("bits", "colour", "clear", "pixel"),
    [
        (1, 0, (1,), b"\xff"),
        (2, 0, (2,), b"\xaa"),
        (4, 0, (9,), b"\x99"),
        (8, 0, (200,), b"\xc8"),
        (16, 0, (0x1234,), b"\x12\x34"),
        (8, 2, (1, 2, 3), b"\1\2\3"),
        (16, 2, (0x1234, 0x5678, 0x9ABC), b"\x12\x34\x56\x78\x9a\xbc"),
    ],
)
@pytest.mark.usefixtures("decoded_here")
def test_a_transparent_colour_is_white_at_every_depth(
    bits: int, colour: int, clear: tuple[int, ...], pixel: bytes
) -> None:
    """The left half has the colour, the right half is black."""
    row_bytes = 64 * bits * len(clear) // 8
    half = pixel * (row_bytes // 2 // len(pixel))
    data = zlib.compress((b"\0" + half + bytes(row_bytes - len(half))) * 64)
    trns = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    clean = opened(sanitize_image(png(64, 64, bits, colour, data=data, extra=trns)))
    assert (clean.getpixel((9, 9)), clean.getpixel((60, 9))) == ((255,) * 3, (0,) * 3)
    opaque = opened(sanitize_image(png(64, 64, bits, colour, data=data)))
    assert (opaque.getpixel((9, 9)) == (255,) * 3) == (bits == 1)


@pytest.mark.parametrize("name", ["exif", "APP1"])
@pytest.mark.usefixtures("decoded_here")
def test_orientation_in_imagemagicks_text_counts(name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    text = PngImagePlugin.PngInfo()
    lines = [block.hex()[at : at + 72] for at in range(0, 2 * len(block), 72)]
    body = "\n".join(["", name, f"{len(block):8}", *lines, ""])
    text.add_text(f"Raw profile type {name}", body, zip=True)
    clean = sanitize_image(encode(make_image(size=(64, 100)), "PNG", pnginfo=text))
    assert (clean.width, clean.height) == (100, 64)
    text.add_text(f"Raw profile type {name}", "\nexif\n  9\nno hexadecimal")
    assert sanitize_image(encode(make_image(size=(64, 100)), "PNG", pnginfo=text)).height in (
        64,
        100,
    )


def test_a_side_may_have_64_to_4096_pixels() -> None:
    limits = ImageLimits()
    for size in [(64, 64), (4096, 64), (64, 4096)]:
        assert sanitize_image(encode(Image.new("L", size), "PNG"), limits).width == size[0]
    for size in [(63, 64), (64, 63), (4097, 64), (64, 4097)]:
        for image_format in ("PNG", "JPEG", "WEBP"):
            with pytest.raises(ImageDimensions, match="64 to 4096"):
                sanitize_image(encode(Image.new("RGB", size), image_format), limits)


class Endless:
    """An upload that never ends; counts what is read of it."""

    def __init__(self) -> None:
        self.count = 0

    def read(self, size: int, /) -> bytes:
        self.count += size
        return b"\x89" * size


def test_an_upload_is_read_no_further_than_its_limit() -> None:
    upload = Endless()
    with pytest.raises(ImageTooLarge):
        sanitize_image(upload, ImageLimits(max_bytes=1_000_000))
    assert upload.count <= 1_000_000 + 2 * 65536


def test_exactly_the_limit_is_accepted() -> None:
    data = encode(make_image(), "PNG")
    assert sanitize_image(data, ImageLimits(max_bytes=len(data))).width == make_image().width
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ImageTooLarge):
            sanitize_image(source, ImageLimits(max_bytes=len(data) - 1))


def test_busy_decoders_are_the_servers_fault_not_the_images() -> None:
    for _ in range(intake.DECODERS):
        assert intake._decoders.acquire(timeout=5)
    try:
        with pytest.raises(ImageDecoderUnavailable):
            sanitize_image(encode(make_image(), "PNG"), ImageLimits(queue_s=0.01))
    finally:
        for _ in range(intake.DECODERS):
            intake._decoders.release()
    assert sanitize_image(encode(make_image(), "PNG")).width == make_image().width


@pytest.mark.parametrize(
    "program", ["raise SystemExit(3)", "print('nonsense')", 'print(\'{"refused": "x"}\')', ""]
)
def test_a_decoder_that_fails_is_the_servers_fault(
    program: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = io.StringIO(program)
    path = f"{tmp_path}/decoder.py"
    with open(path, "w") as file:
        file.write(script.getvalue())
    monkeypatch.setattr(intake, "_DECODER", path)
    with pytest.raises(ImageDecoderUnavailable):
        sanitize_image(encode(make_image(), "PNG"))


def test_a_decoder_that_cannot_be_started_is_the_servers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ImageDecoderUnavailable):
        sanitize_image(encode(make_image(), "PNG"))


def test_the_decoder_sees_none_of_the_environment(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API's secrets are in its environment; a decoder under attack must not have them."""
    path = f"{tmp_path}/decoder.py"
    with open(path, "w") as file:
        file.write("import os, sys; sys.exit(repr(sorted(os.environ)))")
    monkeypatch.setattr(intake, "_DECODER", path)
    monkeypatch.setenv("DARKROOM_SECRET", "hush")
    with pytest.raises(ImageDecoderUnavailable) as caught:
        sanitize_image(encode(make_image(), "PNG"))
    assert "DARKROOM_SECRET" not in str(caught.value)
    assert "[" in str(caught.value)


# An initial image of another shape than its job: cropped, shown whole, or left to be stretched


def flag(width: int = 90, height: int = 30) -> Image.Image:
    """Red, white and blue, side by side."""
    image = Image.new("RGB", (width, height), "white")
    image.paste("red", (0, 0, width // 3, height))
    image.paste("blue", (width - width // 3, 0, width, height))
    return image


def test_fill_crops_what_is_too_much() -> None:
    made = resized(flag(), (64, 64), "fill")
    assert made.size == (64, 64)
    assert made.getpixel((32, 32)) == (255, 255, 255)
    edges: Any = [made.getpixel((x, 32)) for x in (0, 63)]
    assert all(min(edge) > 150 for edge in edges)  # hardly red, hardly blue
    tall = resized(flag(96, 192), (64, 64), "fill")
    assert (tall.getpixel((0, 0)), tall.getpixel((63, 63))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("turned", [False, True])
def test_fit_shows_all_of_it_and_continues_its_edges(turned: bool) -> None:
    turn = Image.Transpose.TRANSPOSE
    source = flag().transpose(turn) if turned else flag()
    made = resized(source, (96, 64), "fit") if not turned else resized(source, (64, 96), "fit")
    if turned:
        made = made.transpose(turn)
    assert made.size == (96, 64)
    for y in (0, 32, 63):
        assert [made.getpixel((x, y)) for x in (2, 48, 93)] == [
            (255, 0, 0), (255, 255, 255), (0, 0, 255),
        ]  # fmt: skip


@pytest.mark.parametrize("mode", ["stretch", None])
def test_stretching_is_left_to_the_pipeline(mode: str | None) -> None:
    source = flag()
    assert resized(source, (64, 64), mode) is source


@pytest.mark.parametrize("mode", ["fill", "fit"])
def test_an_image_of_the_right_size_keeps_its_pixels(mode: str) -> None:
    source = flag(64, 64)
    assert resized(source, (64, 64), mode).tobytes() == source.tobytes()


# --- `data:` URLs: the form, and the bound that comes before decoding ---


HEAD = "data:image/png;base64,"


def url(data: bytes, head: str = HEAD) -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 997, 998, 999, 1000])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "PNG"])
def test_bytes_come_through(length: int, kind: str) -> None:
    data = bytes(index % 251 for index in range(length))
    assert parse_data_url(url(data, f"data:image/{kind};base64,"), 1000) == data


@pytest.mark.parametrize("length", [1001, 1002, 1003, 1004, 50_000])
def test_more_than_the_limit_is_refused(length: int) -> None:
    with pytest.raises(ImageTooLarge):
        parse_data_url(url(bytes(length)), 1000)


def test_the_limit_is_seen_before_anything_is_decoded() -> None:
    """Junk that is too long is "too large": nobody looked at it."""
    with pytest.raises(ImageTooLarge):
        parse_data_url(HEAD + "!" * 10_000, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "", "data:", "data:,", "data:image/png,AAAA", "data:image/png;base64", "AAAA",
        "data:image/svg+xml;base64,AAAA", "data:image/gif;base64,AAAA", "data:text/html;base64,AA",
        "data:image/png;charset=utf-8;base64,AAAA", " " + HEAD + "AAAA", HEAD + "AAA",
        HEAD + "AA=A", HEAD + "AA AA", HEAD + "AAAA\n", HEAD + "AA-_", HEAD + "%41%41%41%41",
        HEAD + "ÀÀÀÀ", HEAD + "\ud800AAA", HEAD + "====", HEAD + "A",
        "https://example.com/a.png", "file:///etc/passwd", "data:image/ｐng;base64,AAAA",
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ImageNotRecognized):
        parse_data_url(text, 1000)

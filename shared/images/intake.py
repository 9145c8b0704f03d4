"""One untrusted image in, a file or a data URL; one clean PNG out, or a typed refusal."""

import base64
import binascii
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, TypeVar

from shared.images.formats import (
    REFUSALS,
    Header,
    ImageDecoderUnavailable,
    ImageDimensions,
    ImageNotRecognized,
    ImageTooLarge,
    ImageUndecodable,
    read_header,
)

T = TypeVar("T")

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


# The file is decoded in a process of its own (`shared.images.decoder`), one per image, with
# limits on memory, processor time and output, an empty environment, and no open files but its
# input and output. Decoding in the API's process was measured and rejected. The largest image
# accepted, 4096 by 4096, costs 80 MB (JPEG) to 350 MB (WebP with transparency) while it is
# decoded, and memory a heap has once grown to is seldom given back; nothing in a process can stop
# a decoder that is inside a 10 MB "scan bomb" (a progressive JPEG with a million empty passes);
# and a flaw in a C decoder would be the API's crash, or worse. A process costs about 0.1 s of one
# core, which a starting image, some kilobytes of PNG against seconds of a GPU, can well bear. A
# pool that keeps processes would save that, but would let one user's image meet the next one's.
#
# At most `DECODERS` run at once, so the memory they can take is bounded too; the parent holds the
# file and its result, never pixels. The call blocks: async code calls it in a thread.

DECODERS = 2
"""How many images are decoded at once in this process; others wait."""

_decoders = threading.BoundedSemaphore(DECODERS)
_DECODER = Path(__file__).with_name("decoder.py")
_CHUNK = 64 * 1024

# A PNG of incompressible pixels is about 0.1 % larger than the pixels.
_PNG_OVERHEAD = 1.01
_ANSWER_LINE = 1024
_LOG_BYTES = 2048


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What is accepted. Sides in pixels, sizes in bytes, times in seconds."""

    max_bytes: int = 10 * 1024 * 1024
    min_side: int = 64
    max_side: int = 4096
    # Of each of EXIF, XMP, colour profile and text, unpacked. Print profiles reach 3 MB.
    max_metadata_bytes: int = 4 * 1024 * 1024
    # The worst image within the sides above maps 381 MB (measured, Pillow 13, Linux x86-64).
    decoder_memory_bytes: int = 512 * 1024 * 1024
    # The slowest of the honest images at 4096 × 4096, a CMYK JPEG, takes 3 s of one core.
    decoder_cpu_s: int = 15
    decoder_wall_s: float = 30.0
    # How long to wait for one of the `DECODERS` to be free.
    queue_s: float = 30.0

    @property
    def max_output_bytes(self) -> int:
        """More than any clean image within these limits can have."""
        return int(self.max_side * self.max_side * 4 * _PNG_OVERHEAD) + _CHUNK


@dataclass(frozen=True, slots=True)
class CleanImage:
    """A PNG made from pixels alone: 8-bit RGB, upright, no metadata.

    One that was transparent somewhere is RGBA: its colours are laid over white already, and its
    alpha may be a mask.

    `width` and `height` are in pixels, `sha256` is the lower-case hexadecimal hash of `data`.
    """

    data: bytes
    width: int
    height: int
    sha256: str
    content_type: str = "image/png"


class ByteStream(Protocol):
    """What is read of an upload: a binary file, or anything that reads like one."""

    def read(self, size: int, /) -> bytes: ...


def sanitize_image(
    source: bytes | ByteStream, limits: ImageLimits | None = None, fit_side: int | None = None
) -> CleanImage:
    """Decode one PNG, JPEG or WebP from a user and re-encode its pixels.

    EXIF orientation is applied; transparency is laid over white, and kept; grey, palette, CMYK and
    16-bit images become 8-bit RGB in sRGB, by their ICC profile or a PNG's gAMA. A file whose
    checksums are wrong, or whose data end before the image, is refused. Everything else is gone, so
    what may hide behind or between the pixels (a second file, scripts, a place name) is never
    stored or served. With `fit_side` a larger image is scaled down to fit into a square of so
    many pixels.

    Raises a kind of `ImageRefused` when the file is at fault, and `ImageDecoderUnavailable` when
    no decoder could be had.
    """
    limits = limits or ImageLimits()
    data = _read_bounded(source, limits.max_bytes)
    header = read_header(data)
    if header.size is not None and not all(
        limits.min_side <= side <= limits.max_side for side in header.size
    ):
        width, height = header.size
        raise ImageDimensions(
            f"{width} × {height} pixels: a side must have {limits.min_side} to {limits.max_side}."
        )
    with decoder_slot(limits):
        return _decode(data, header, limits, fit_side)


@contextmanager
def decoder_slot(limits: ImageLimits) -> Iterator[None]:
    """One of the `DECODERS`.

    Raises `ImageDecoderUnavailable` when all stay busy.
    """
    if not _decoders.acquire(timeout=limits.queue_s):
        raise ImageDecoderUnavailable("All image decoders are busy.")
    try:
        yield
    finally:
        _decoders.release()


def _read_bounded(source: bytes | ByteStream, max_bytes: int) -> bytes:
    """All of `source`, never holding more than the limit and one chunk."""
    if isinstance(source, bytes):
        data = source
    else:
        parts = bytearray()
        while len(parts) <= max_bytes and (chunk := source.read(_CHUNK)):
            parts += chunk
        data = bytes(parts)
    if len(data) > max_bytes:
        raise ImageTooLarge(f"An image may have {max_bytes} bytes at most.")
    return data


def _decode(data: bytes, header: Header, limits: ImageLimits, fit_side: int | None) -> CleanImage:
    """Run the decoder on `data` and read its answer."""
    request = {
        "format": header.format,
        "min_side": limits.min_side,
        "max_side": limits.max_side,
        "max_metadata_bytes": limits.max_metadata_bytes,
        "memory_bytes": limits.decoder_memory_bytes,
        "cpu_seconds": limits.decoder_cpu_s,
        "output_bytes": limits.max_output_bytes,
        "fit_side": fit_side,
    }
    with tempfile.TemporaryFile() as file:
        file.write(data)
        return run_confined([str(_DECODER), json.dumps(request)], file, limits, _read_answer)


def run_confined(
    arguments: Sequence[str],
    file: IO[bytes],
    limits: ImageLimits,
    read: Callable[[IO[bytes]], T],
) -> T:
    """Let a program of ours read a file in a process of its own, and read its answer.

    Raises `ImageUndecodable` or `ImageDecoderUnavailable`.
    """
    file.seek(0)
    try:
        # Files rather than pipes: the decoder's limit on file size then bounds its answer, and a
        # decoder that stops reading or writing blocks nobody.
        with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as log:
            done = subprocess.run(
                [sys.executable, "-I", *arguments],
                stdin=file,
                stdout=answer,
                stderr=log,
                env={},
                cwd="/",
                timeout=limits.decoder_wall_s,
                check=False,
            )
            if done.returncode < 0:  # A signal: out of processor time, or a decoder's crash.
                raise ImageUndecodable("Decoding it takes more than is allowed.")
            answer.seek(0)
            log.seek(0)
            if done.returncode > 0:
                reason = log.read(_LOG_BYTES).decode("utf-8", "replace").strip()
                raise ImageDecoderUnavailable(f"The image decoder failed: {reason}")
            return read(answer)
    except subprocess.TimeoutExpired:
        raise ImageUndecodable("Decoding it takes longer than is allowed.") from None
    except OSError as error:
        raise ImageDecoderUnavailable(f"The image decoder cannot be run: {error}") from error


def _read_answer(answer: IO[bytes]) -> CleanImage:
    """The clean image, or its refusal raised. What the decoder says is no more than a claim."""
    try:
        head = json.loads(answer.readline(_ANSWER_LINE))
        refused = head.get("refused")
        if refused is None:
            width, height = int(head["width"]), int(head["height"])
        else:
            refusal = REFUSALS[refused](str(head["detail"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImageDecoderUnavailable("The image decoder gave no sensible answer.") from error
    if refused is not None:
        raise refusal
    clean = answer.read()
    return CleanImage(clean, width, height, hashlib.sha256(clean).hexdigest())

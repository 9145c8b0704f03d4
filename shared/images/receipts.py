"""Receipts: how an image was made, as JSON and as chunks inside the image.

A receipt is enough to make the image again, bit for bit on the same hardware and software. It is
kept in the database, in the PNG's ``darkroom`` iTXt chunk, and, for other tools, as the widely read
``parameters`` text. WebP and JPEG carry the same JSON in EXIF's ImageDescription.
"""

import json
import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the API starts without Pillow
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

RECEIPT_VERSION = 2
"""Version 1 called the batch size `rows`; such receipts are read for ever, see `upgrade`."""

CHUNK = "darkroom"
_XMP = "XML:com.adobe.xmp"
"""Of XMP in a PNG (XMP specification, part 3)."""
_EXIF_IMAGE_DESCRIPTION = 0x010E

_MAX_RECEIPT_CHARACTERS = 200_000
"""Two prompts of 4,000 characters make up to 96,000: an emoji takes twelve in ASCII."""

_READABLE = (1, RECEIPT_VERSION)

_MAX_DEPTH = 20
"""Of lists and objects; ours have four."""

_MAX_EXIF = 60_000
"""Bytes of a JPEG's EXIF segment, whose length has 16 bits, less what else is in it."""


def png_chunks(receipt: dict[str, Any], xmp: str = "") -> "PngInfo":
    """The chunks of a PNG: the receipt, the settings in the common text form, and XMP."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if xmp:
        chunks.add_itxt(_XMP, xmp)
    chunks.add_itxt(CHUNK, dumps(receipt))
    chunks.add_itxt("parameters", parameters_text(receipt))
    return chunks


def exif_block(receipt: dict[str, Any]) -> "Image.Exif":
    """The EXIF of a WebP or JPEG. The standard wants ASCII; what is too long so is UTF-8."""
    from PIL import Image

    text: str | bytes = dumps(receipt)
    if len(text) > _MAX_EXIF:
        text = dumps(receipt, ensure_ascii=False).encode()
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = text
    return exif


def read_receipt(image: "Image.Image") -> dict[str, Any] | None:
    """The receipt inside an image, or None if it carries none that can be read.

    Anybody can write one: what is returned is JSON that can be written and stored again (finite
    numbers, whole characters, no NUL, no great depth), and no more is said of it.
    """
    try:
        text = _find_text(image)
        if text is None or len(text) > _MAX_RECEIPT_CHARACTERS:
            return None
        receipt = json.loads(text, parse_constant=_refuse)
        if not isinstance(receipt, dict) or receipt.get("receipt_version") not in _READABLE:
            return None
        _check(receipt, _MAX_DEPTH)
    except (ValueError, RecursionError):
        return None
    return receipt


def upgrade(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt of any version in the terms of the current one; the original is left as it is."""
    if receipt.get("receipt_version") != 1:
        return receipt
    renamed = {("batch_size" if name == "rows" else name): receipt[name] for name in receipt}
    return renamed | {"receipt_version": RECEIPT_VERSION}


def _find_text(image: "Image.Image") -> str | None:
    text = image.info.get(CHUNK)
    if text is None:
        try:
            text = image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
        except (OSError, SyntaxError, struct.error):  # cut off, or no EXIF at all
            return None
        if isinstance(text, str):
            # Pillow takes EXIF's bytes for Latin-1.
            text = text.encode("latin-1").decode("utf-8")
    return text if isinstance(text, str) else None


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError("too deep")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("NUL")
        value.encode()  # Half a surrogate is no character.
    elif isinstance(value, float):
        if not math.isfinite(value):  # 1e999
            raise ValueError("not finite")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check(name, depth)
            _check(member, depth - 1)
    elif isinstance(value, list):
        for member in value:
            _check(member, depth - 1)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def dumps(receipt: dict[str, Any], *, ensure_ascii: bool = True) -> str:
    """Canonical JSON: sorted keys, ASCII, no spaces, so that equal receipts are equal texts."""
    return json.dumps(
        receipt, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=ensure_ascii
    )


def parameters_text(receipt: dict[str, Any]) -> str:
    """The settings in the text form that image tools show: prompt, negative prompt, key: value."""
    lines = [receipt["prompt"]]
    if receipt.get("negative_prompt"):
        lines.append(f"Negative prompt: {receipt['negative_prompt']}")
    facts = {
        "Steps": receipt["steps"],
        "Sampler": receipt["scheduler"]["name"],
        "CFG scale": receipt["guidance_scale"],
        **({"True CFG scale": receipt["true_cfg_scale"]} if receipt.get("true_cfg_scale") else {}),
        "Seed": receipt["seed"],
        "Size": f"{receipt['width']}x{receipt['height']}",
        "Model hash": receipt["model"]["content_hash"][:10],
        "Model": receipt["model"]["name"],
    }
    if receipt.get("strength") is not None:
        facts["Denoising strength"] = receipt["strength"]
    if receipt.get("loras"):
        hashes = (f"{lora['name']}: {lora['sha256'][:12]}" for lora in receipt["loras"])
        facts["Lora hashes"] = f'"{", ".join(hashes)}"'
    facts["Version"] = f"darkroom {receipt['software']['darkroom']}"
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)

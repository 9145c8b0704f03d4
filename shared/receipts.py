"""Receipts: how a picture was made, as JSON and as chunks inside the picture.

A receipt is enough to make the picture again, bit for bit on the same hardware and software. It is
kept in the ledger, in the PNG's ``darkroom`` iTXt chunk, and, for other tools, as the widely read
``parameters`` text. WebP and JPEG carry the same JSON in EXIF's ImageDescription.
"""

import json
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

RECEIPT_VERSION = 1
CHUNK = "darkroom"
_EXIF_IMAGE_DESCRIPTION = 0x010E
_MAX_RECEIPT_CHARACTERS = 64_000


def png_chunks(receipt: dict[str, Any]) -> PngInfo:
    """The chunks of a PNG: the receipt, and the settings in the common text form."""
    chunks = PngInfo()
    chunks.add_itxt(CHUNK, dumps(receipt))
    chunks.add_itxt("parameters", parameters_text(receipt))
    return chunks


def exif_block(receipt: dict[str, Any]) -> Image.Exif:
    """The EXIF of a WebP or JPEG."""
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = dumps(receipt)
    return exif


def read_receipt(picture: Image.Image) -> dict[str, Any] | None:
    """The receipt inside a picture, or None if it carries none that can be read."""
    text = picture.info.get(CHUNK)
    if text is None:
        text = picture.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if not isinstance(text, str) or len(text) > _MAX_RECEIPT_CHARACTERS:
        return None
    try:
        receipt = json.loads(text)
    except ValueError:
        return None
    if not isinstance(receipt, dict) or receipt.get("receipt_version") != RECEIPT_VERSION:
        return None
    return receipt


def dumps(receipt: dict[str, Any]) -> str:
    """Canonical JSON: sorted keys, ASCII, no spaces, so that equal receipts are equal texts."""
    return json.dumps(receipt, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parameters_text(receipt: dict[str, Any]) -> str:
    """The settings in the text form that image tools show: prompt, negative prompt, key: value."""
    lines = [receipt["prompt"]]
    if receipt.get("negative_prompt"):
        lines.append(f"Negative prompt: {receipt['negative_prompt']}")
    facts = {
        "Steps": receipt["steps"],
        "Sampler": receipt["scheduler"]["name"],
        "CFG scale": receipt["guidance_scale"],
        "Seed": receipt["seed"],
        "Size": f"{receipt['width']}x{receipt['height']}",
        "Model hash": receipt["model"]["content_hash"][:10],
        "Model": receipt["model"]["name"],
    }
    if receipt.get("strength") is not None:
        facts["Denoising strength"] = receipt["strength"]
    facts["Version"] = f"darkroom {receipt['software']['darkroom']}"
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)

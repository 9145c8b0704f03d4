"""Throw the files of a folder at `sanitize_image` in a process of its own; report as JSON.

The tests run it as `python throw.py FOLDER`: what the process and its decoders take is then what
the images cost, with nothing of pytest or of the making of bombs in it.
"""

import io
import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from shared.images.formats import ImageRefused
from shared.images.intake import CleanImage, sanitize_image


def judge(file: Path) -> dict[str, Any]:
    """What became of one file."""
    started = time.monotonic()
    try:
        with file.open("rb") as stream:
            clean = sanitize_image(stream)
    except ImageRefused as refusal:
        outcome, detail = refusal.code, str(refusal)
    except Exception as error:
        outcome, detail = type(error).__name__, str(error)
    else:
        outcome, detail = "clean", faults(clean)
    return {"outcome": outcome, "detail": detail, "seconds": time.monotonic() - started}


def faults(clean: CleanImage) -> str:
    """What is wrong with an image that passed; nothing, if all is well."""
    image = Image.open(io.BytesIO(clean.data), formats=("PNG",))  # Reads no pixels.
    found = []
    if image.mode not in ("RGB", "RGBA") or image.size != (clean.width, clean.height):
        found.append(f"{image.mode} {image.size}")
    if image.info:
        found.append(f"kept {list(image.info)}")
    if not clean.data.endswith(b"IEND\xae\x42\x60\x82") or b"EVIL" in clean.data:
        found.append("kept what was not pixels")
    return ", ".join(found)


def own_peak_mb() -> float:
    """Peak resident memory of this process in MB.

    Not from getrusage on Linux: there a process begins with the peak of the one that started it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def decoder_peak_mb() -> float:
    """Peak resident memory of the largest decoder in MB; Linux counts kB and macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    files = sorted(Path(sys.argv[1]).iterdir())
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip([file.name for file in files], pool.map(judge, files), strict=True))
    report = {
        "results": results,
        "own_peak_mb": own_peak_mb(),
        "decoder_peak_mb": decoder_peak_mb(),
    }
    sys.stdout.write(json.dumps(report))

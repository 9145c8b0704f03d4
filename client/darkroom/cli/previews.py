"""Show images in the terminal, in the best way it supports.

kitty's graphics protocol (kitty, Ghostty), iTerm2's inline images (iTerm2, WezTerm), or half
blocks: the character ▀ in 24-bit colours, two pixels in each cell. Inside tmux and screen the
first two do not reach the terminal, so half blocks are used.

Protocols: https://sw.kovidgoyal.net/kitty/graphics-protocol/ and
https://iterm2.com/documentation-images.html.
"""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

_CHUNK = 4096
"""Most characters that kitty accepts in one escape sequence."""
_MAX_ROWS = 16
_MAX_COLUMNS = 40


class PreviewMode(StrEnum):
    """How to show images."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM2 = "iterm2"
    BLOCKS = "blocks"
    OFF = "off"


def choose(
    choice: PreviewMode, console: "Console", environ: Mapping[str, str] = os.environ
) -> PreviewMode:
    """The best way for this terminal; a way that is named explicitly is taken as it is."""
    if choice is not PreviewMode.AUTO:
        return choice
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:
        return PreviewMode.OFF
    inside = environ.get("TMUX") or environ.get("TERM", "").startswith(("screen", "tmux"))
    program = environ.get("TERM_PROGRAM", "")
    if not inside:
        if environ.get("KITTY_WINDOW_ID") or program == "ghostty":
            return PreviewMode.KITTY
        if program in ("iTerm.app", "WezTerm"):
            return PreviewMode.ITERM2
    return PreviewMode.BLOCKS if console.color_system == "truecolor" else PreviewMode.OFF


def can_animate(way: PreviewMode, console: "Console") -> bool:
    """Whether images can be redrawn in place; only half blocks can, since they are text."""
    return way is not PreviewMode.OFF and console.color_system == "truecolor"


def show(files: Sequence[bytes], way: PreviewMode, console: "Console") -> None:
    """Print images, given as file contents, side by side as far as the terminal is wide.

    Without Pillow, and for a damaged file, it shows nothing.
    """
    if way is PreviewMode.OFF:
        return
    if way is PreviewMode.BLOCKS:
        from rich.columns import Columns

        drawn = [blocks for data in files if (blocks := half_blocks(data)) is not None]
        console.print(Columns(drawn, padding=(0, 2)), soft_wrap=False)
        return
    images = [image for data in files if (image := _open(data)) is not None]
    for row in _rows(images, max(1, console.width // _MAX_COLUMNS)):
        png = _strip(row)
        sequence = _kitty(png) if way is PreviewMode.KITTY else _iterm2(png)
        console.file.write(f"{sequence}\n")
    console.file.flush()


def _rows(images: "Sequence[Image]", length: int) -> "Iterator[Sequence[Image]]":
    for start in range(0, len(images), length):
        yield images[start : start + length]


def _strip(images: "Sequence[Image]") -> bytes:
    """Join images of one size into one PNG with transparent gaps."""
    from PIL import Image

    width, height = images[0].size
    gap = width // 32
    strip = Image.new("RGBA", (len(images) * (width + gap) - gap, height), (0, 0, 0, 0))
    for number, image in enumerate(images):
        strip.paste(image, (number * (width + gap), 0))
    png = io.BytesIO()
    strip.save(png, "PNG", compress_level=1)
    return png.getvalue()


def half_blocks(data: bytes, columns: int = _MAX_COLUMNS, rows: int = _MAX_ROWS) -> "Text | None":
    """Draw an image in at most that many cells; None if it cannot be decoded."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    image = _open(data)
    if image is None:
        return None
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, round(image.width * scale))
    height = max(2, 2 * round(image.height * scale / 2))
    pixels: Any = image.resize((width, height)).load()
    drawn = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            top, bottom = Color.from_rgb(*pixels[x, y]), Color.from_rgb(*pixels[x, y + 1])
            drawn.append("▀", Style(color=top, bgcolor=bottom))
        if y + 2 < height:
            drawn.append("\n")
    return drawn


def _open(data: bytes) -> "Image | None":
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _kitty(png: bytes) -> str:
    """Transmit and display in one go, scaled to the rows of a preview."""
    text = base64.standard_b64encode(png).decode()
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        head = f"a=T,f=100,q=2,r={_MAX_ROWS}," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        parts.append(f"\x1b_G{head}m={more};{chunk}\x1b\\")
    return "".join(parts)


def _iterm2(png: bytes) -> str:
    text = base64.standard_b64encode(png).decode()
    return f"\x1b]1337;File=inline=1;size={len(png)};height={_MAX_ROWS}:{text}\a"

"""Show a picture in the terminal, by the best of the ways that it knows.

kitty's graphics protocol (kitty, Ghostty), iTerm2's inline images (iTerm2, WezTerm), or half
blocks: the character ▀ in 24-bit colours, two pixels in each cell. Inside tmux and screen the
first two do not reach the terminal, so half blocks are taken.

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
"""Characters of one escape sequence that kitty accepts."""
_MAX_ROWS = 16
_MAX_COLUMNS = 40


class Preview(StrEnum):
    """How to show pictures."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM2 = "iterm2"
    BLOCKS = "blocks"
    OFF = "off"


def choose(asked: Preview, console: "Console", environ: Mapping[str, str] = os.environ) -> Preview:
    """The way for this terminal; what was asked for by name is believed."""
    if asked is not Preview.AUTO:
        return asked
    if not console.is_terminal or console.is_dumb_terminal or console.no_color:
        return Preview.OFF
    inside = environ.get("TMUX") or environ.get("TERM", "").startswith(("screen", "tmux"))
    program = environ.get("TERM_PROGRAM", "")
    if not inside:
        if environ.get("KITTY_WINDOW_ID") or program == "ghostty":
            return Preview.KITTY
        if program in ("iTerm.app", "WezTerm"):
            return Preview.ITERM2
    return Preview.BLOCKS if console.color_system == "truecolor" else Preview.OFF


def can_move(way: Preview, console: "Console") -> bool:
    """Whether pictures can be drawn again and again: that takes half blocks, which are text."""
    return way is not Preview.OFF and console.color_system == "truecolor"


def show(files: Sequence[bytes], way: Preview, console: "Console") -> None:
    """Print image files' contents, side by side as far as the terminal is wide.

    Without Pillow, or for a damaged file, nothing is shown.
    """
    if way is Preview.OFF:
        return
    if way is Preview.BLOCKS:
        from rich.columns import Columns

        drawn = [blocks for data in files if (blocks := half_blocks(data)) is not None]
        console.print(Columns(drawn, padding=(0, 2)), soft_wrap=False)
        return
    pictures = [picture for data in files if (picture := _opened(data)) is not None]
    for row in _rows(pictures, max(1, console.width // _MAX_COLUMNS)):
        png = _strip(row)
        sequence = _kitty(png) if way is Preview.KITTY else _iterm2(png)
        console.file.write(f"{sequence}\n")
    console.file.flush()


def _rows(pictures: "Sequence[Image]", length: int) -> "Iterator[Sequence[Image]]":
    for start in range(0, len(pictures), length):
        yield pictures[start : start + length]


def _strip(pictures: "Sequence[Image]") -> bytes:
    """Pictures of one job, which have one size, as one PNG with clear gaps."""
    from PIL import Image

    width, height = pictures[0].size
    gap = width // 32
    strip = Image.new("RGBA", (len(pictures) * (width + gap) - gap, height), (0, 0, 0, 0))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * (width + gap), 0))
    png = io.BytesIO()
    strip.save(png, "PNG", compress_level=1)
    return png.getvalue()


def half_blocks(data: bytes, columns: int = _MAX_COLUMNS, rows: int = _MAX_ROWS) -> "Text | None":
    """The picture in at most that many cells; None where it cannot be decoded."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    picture = _opened(data)
    if picture is None:
        return None
    scale = min(columns / picture.width, 2 * rows / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(2, 2 * round(picture.height * scale / 2))
    pixels: Any = picture.resize((width, height)).load()
    drawn = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            top, bottom = Color.from_rgb(*pixels[x, y]), Color.from_rgb(*pixels[x, y + 1])
            drawn.append("▀", Style(color=top, bgcolor=bottom))
        if y + 2 < height:
            drawn.append("\n")
    return drawn


def _opened(data: bytes) -> "Image | None":
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _kitty(png: bytes) -> str:
    """Transmit and show at once, scaled to the rows of a preview."""
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

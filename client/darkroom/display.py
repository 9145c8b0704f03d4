"""What notebooks show: images as they are, several as a grid, and a bar while one waits.

It imports neither IPython nor Pillow: where a notebook runs, IPython is there.
"""

import base64
import html
import sys
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image as PillowImage

    from darkroom.types.batches import Batch
    from darkroom.types.jobs import Job

T = TypeVar("T")

BAR_SECONDS = 1
"""How often a bar is drawn."""
_WIDTH = 30
"""Characters of a bar on a terminal."""


def open_image(data: bytes) -> "PillowImage":
    """The file as an image of Pillow.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            f"Pillow is not installed. Install it: {sys.executable} -m pip install pillow"
        ) from None
    image = Image.open(BytesIO(data))
    image.load()
    return image


def png(content_type: str, read: "Callable[[], bytes | None]") -> bytes | None:
    """The file as PNG; None where it is JPEG, which notebooks show as it is, or cannot be read."""
    if content_type == "image/jpeg":
        return None
    data = read()
    if data is None or content_type == "image/png":
        return data
    try:
        image = open_image(data)
    except ImportError:
        return None
    packed = BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


class ImageList(list[T]):
    """A list of images that a notebook shows as a grid of thumbnails."""

    def _repr_html_(self) -> str:
        figures = "".join(map(_figure, self))
        return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{figures}</div>'


def _figure(image: Any) -> str:
    thumbnail = image._thumbnail_now()
    caption = f"seed {image.seed}"
    if thumbnail is None:
        return f"<p>{html.escape(image.id)}, {caption}</p>"
    source = f"data:image/webp;base64,{base64.b64encode(thumbnail).decode()}"
    alt = html.escape(image.prompt or image.id)
    return (
        f'<figure style="margin:0"><img src="{source}" alt="{alt}" title="{alt}" '
        f'style="max-width:256px"><figcaption>{caption}</figcaption></figure>'
    )


class ProgressBar:
    """In a notebook an element that is drawn again and again; on a terminal a line of stderr."""

    def __init__(self) -> None:
        self._display: Any = import_module("IPython.display") if _in_notebook() else None
        self._shown: Any = self._display and self._display.display(
            self._display.HTML(""), display_id=True
        )

    def show(self, resource: "Job | Batch") -> None:
        """Draw what is known of a job or a batch."""
        fraction, text = _progress(resource)
        if self._shown is not None:
            bar = (
                ""
                if resource.is_final
                else f'<progress value="{fraction:.3f}" max="1"></progress> '
            )
            self._shown.update(self._display.HTML(f"<small>{bar}{html.escape(text)}</small>"))
            return
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{'━' * round(_WIDTH * fraction):─<{_WIDTH}} {text}")
        if resource.is_final:
            sys.stderr.write("\n" if sys.stderr.isatty() else f"{text}\n")
        sys.stderr.flush()


def progress_bar(wanted: bool | None) -> ProgressBar | None:
    """A bar where it is wanted; by default in notebooks only."""
    is_wanted = _in_notebook() if wanted is None else wanted
    return ProgressBar() if is_wanted else None


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter's, not IPython on a terminal."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def _progress(resource: Any) -> tuple[float, str]:
    """How far it is, 0 to 1, and in words."""
    if hasattr(resource, "counts"):
        images = resource.images
        return resource.fraction, f"{resource.state}, {images.done:,} of {images.total:,} images"
    if resource.state == "queued" and resource.queue_position:
        return 0.0, f"queued behind {resource.queue_position:,}"
    if resource.state == "succeeded":
        seconds = (resource.metrics.run_ms or 0) / 1000
        count = len(resource.images)
        return 1.0, f"{count} image{'' if count == 1 else 's'} in {seconds:.1f} s"
    if resource.progress is None:
        return float(resource.is_final), resource.state
    step = f"step {resource.progress.step} of {resource.progress.steps}"
    return resource.progress.fraction, f"{resource.progress.fraction:.0%}, {step}"

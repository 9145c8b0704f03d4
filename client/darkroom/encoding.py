"""Arguments as HTTP has them: ids, times, bodies, queries, files."""

import os
import re
import sys
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from darkroom.errors import MalformedId
from darkroom.types.requests import FileSource

_LEAVES_THE_PATH = re.compile(r"\.+")
REFERENCES = ("img_", "upl_", "data:", "https://", "http://")
"""How texts begin that name an image and are no path."""
_IMAGE_FILE = re.compile(r".*\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic)", re.IGNORECASE | re.DOTALL)
_FILES = "a Path, bytes, an open binary file, a PIL image, or (name, bytes)"
_PNG_MODES = frozenset(("1", "L", "LA", "I;16", "P", "RGB", "RGBA"))
_NEAREST_MODES = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB"}
"""PNG's modes for the same colors."""
_UNSCALED_MODES = frozenset(("I", "F", "I;16B", "I;16L", "I;16N"))


class Identified(Protocol):
    """Anything that has an id of the service."""

    @property
    def id(self) -> str:
        """The id."""


def id_of(resource: str | Identified) -> str:
    """The id of an object; an id is returned as it is."""
    return resource if isinstance(resource, str) else resource.id


def segment(resource: str | Identified) -> str:
    """The id as one segment of a path, quoted.

    Raises:
        MalformedId: it is empty or only dots, which would lead to another path.
    """
    text = id_of(resource)
    if not text or _LEAVES_THE_PATH.fullmatch(text):
        raise MalformedId(f"This is neither an id nor a name: {text!r}")
    return quote(text, safe="")


def new_idempotency_key() -> str:
    """A key made before the first attempt, so that retries do not repeat the work."""
    return f"darkroom-python-{uuid.uuid4()}"


def moment(value: datetime) -> str:
    """RFC 3339 in UTC.

    Raises:
        ValueError: the time has no time zone.
    """
    if value.tzinfo is None:
        raise ValueError("Give times with a time zone, e.g. datetime.now(UTC).")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object: None is left out, times become text, other iterables lists."""
    return {name: _json(value) for name, value in fields.items() if value is not None}


def _json(value: Any) -> Any:
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return list(value)
    return value


def query(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Query parameters: None is left out, a list is repeated, a mapping becomes `name.key`."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}.{key}", str(part)) for key, part in value.items()]
        elif isinstance(value, Iterable) and not isinstance(value, str):
            pairs += [(name, _text(part)) for part in value]
        elif value is not None:
            pairs.append((name, _text(value)))
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return moment(value) if isinstance(value, datetime) else str(value)


def read_file(source: FileSource) -> tuple[str, bytes]:
    """The name and the bytes of a file, read whole so that it can be sent again."""
    if isinstance(source, str):
        raise TypeError(f"Give a file as {_FILES}, not as a str: Path({source[:200]!r})?")
    if isinstance(source, tuple):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return "file", bytes(source)
    if isinstance(source, os.PathLike):
        path = Path(source)
        return path.name, path.read_bytes()
    if _is_pillows(source):
        return "image.png", _png(source)
    if not hasattr(source, "read"):
        raise TypeError(f"Give a file as {_FILES}, not as {type(source).__name__}.")
    file: Any = source
    name, data = getattr(file, "name", None), file.read()
    if not isinstance(data, bytes):
        raise TypeError('The file is open as text: open it with mode "rb".')
    return (Path(name).name if isinstance(name, str) else "file"), data


def _is_pillows(value: Any) -> bool:
    """Whether it is a `PIL.Image.Image`; who has one has imported Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _png(image: Any) -> bytes:
    """Pillow's image as PNG, upright, without loss where PNG has its mode."""
    from PIL import ImageOps

    if image.mode in _UNSCALED_MODES:
        raise TypeError(
            f"An image of mode {image.mode!r} does not say which value is white: scale it to "
            'mode "L" (0 to 255) or "I;16" (0 to 65535).'
        )
    image = ImageOps.exif_transpose(image)
    if image.mode in _NEAREST_MODES:
        image = image.convert(_NEAREST_MODES[image.mode])
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
        image.info.pop("icc_profile", None)  # it describes the colors from before
    packed = BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


def image_reference(text: str) -> str:
    """An id, or a `data:` or https URL, as it is.

    Raises:
        TypeError: it looks like a path.
    """
    if not text.startswith(REFERENCES) and (_IMAGE_FILE.fullmatch(text) or _is_file(text)):
        raise TypeError(
            f"{text[:200]!r} looks like a file: give pathlib.Path({text[:200]!r}). A str is an id "
            "(img_…, upl_…), or a data: or https URL."
        )
    return text


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a path may be, or with a zero
        return False


def refuse_unknown(options: Mapping[str, Any], kind: type) -> None:
    """Find a misspelt keyword before it is sent; `kind` is the TypedDict of the known ones.

    Raises:
        TypeError: an option is not known.
    """
    names = list(kind.__annotations__)
    for name in options:
        if name not in names:
            near = get_close_matches(name, names, 1)
            guess = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(names)}."
            raise TypeError(f"There is no keyword argument {name!r}.{guess}")


def file_in(path: Path, name: str) -> Path:
    """The path, or `name` in it if it is a folder; a path without an extension is one."""
    return path / name if path.is_dir() or not (path.suffix or path.is_file()) else path


def write_file(path: Path, data: bytes) -> Path:
    """Write a file completely or not at all; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path

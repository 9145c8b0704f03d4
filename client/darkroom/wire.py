"""Arguments as they go over the wire: ids, times, bodies, queries, files."""

import os
import re
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from darkroom.errors import MalformedId
from darkroom.types.requests import FileSource

_LEAVES_THE_PATH = re.compile(r"\.+")


class Identified(Protocol):
    """Whatever the service has given an id."""

    @property
    def id(self) -> str:
        """The id."""


def id_of(thing: "str | Identified") -> str:
    """The id of a thing, or the id itself."""
    return thing if isinstance(thing, str) else thing.id


def segment(thing: "str | Identified") -> str:
    """The id as one part of a path: nothing in it leads elsewhere.

    Raises:
        MalformedId: it is empty or made of dots, which would name another path.
    """
    text = id_of(thing)
    if not text or _LEAVES_THE_PATH.fullmatch(text):
        raise MalformedId(f"This is no id and no name: {text!r}")
    return quote(text, safe="")


def new_idempotency_key() -> str:
    """A key for one thing to be done once, made before the first try."""
    return f"darkroom-python-{uuid.uuid4()}"


def moment(value: datetime | None) -> str | None:
    """RFC 3339 in UTC.

    Raises:
        ValueError: the time has no time zone, so nobody can say which moment it is.
    """
    if value is None:
        return None
    if value.tzinfo is None:
        raise ValueError("Give times with a time zone, e.g. datetime.now(UTC).")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object: without what is None, times as text."""
    return {
        name: moment(value) if isinstance(value, datetime) else value
        for name, value in fields.items()
        if value is not None
    }


def query(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Query parameters: without what is None; a list is repeated; `metadata` is a prefix."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            pairs += [(f"{name}.{key}", str(part)) for key, part in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pairs += [(name, _text(part)) for part in value]
        elif value is not None:
            pairs.append((name, _text(value)))
    return pairs


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return moment(value) or "" if isinstance(value, datetime) else str(value)


def states(asked: str | Iterable[str] | None) -> list[str] | None:
    """One state or several, as the repeatable parameter."""
    if asked is None:
        return None
    return [asked] if isinstance(asked, str) else list(asked)


def read_file(source: FileSource) -> tuple[str, bytes]:
    """The name and the bytes of a file. It is read whole, so that it can be sent again."""
    if isinstance(source, str):
        raise TypeError("A file is a pathlib.Path, bytes or an open file; a str is no path here.")
    if isinstance(source, tuple):
        return source
    if isinstance(source, bytes):
        return "file", source
    if isinstance(source, os.PathLike):
        path = Path(source)
        return path.name, path.read_bytes()
    name = getattr(source, "name", None)
    return (Path(name).name if isinstance(name, str) else "file"), source.read()


def file_in(path: Path, name: str) -> Path:
    """The path, or `name` in it if it is a folder; without an extension it is one."""
    return path / name if path.is_dir() or not (path.suffix or path.is_file()) else path


def write_file(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path

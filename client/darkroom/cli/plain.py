"""Turn what the client returns into what JSON can hold: the API's own objects, as they came."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import PurePath
from typing import Any


def plain(value: Any) -> Any:
    """The value as dicts, lists, texts and numbers."""
    if hasattr(value, "raw") and isinstance(value.raw, Mapping):
        return dict(value.raw)
    if is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return _text(value) if isinstance(value, (Enum, datetime, PurePath)) else value


def _text(value: Enum | datetime | PurePath) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.value if isinstance(value, Enum) else str(value)

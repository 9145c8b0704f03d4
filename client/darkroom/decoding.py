"""JSON into frozen dataclasses: what is new is kept aside, what is missing has its default.

A client outlives the server it was written for, in both directions. So fields that a dataclass
does not know are no error (they are in its `raw`), enumerations are open, and only a missing
field without a default means that something else than this service has answered.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, cast

from darkroom.errors import UnexpectedAnswer

T = TypeVar("T")
Decoder = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The base of what the service says."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, hash=False)
    """The JSON object as it came, with fields that this version does not know."""


def wire(name: str) -> Any:
    """A field whose name on the wire is another one."""
    return field(metadata={"wire": name})


def decode(kind: type[T], value: Any) -> T:
    """The JSON value as `kind`.

    Raises:
        UnexpectedAnswer: it has another shape.
    """
    try:
        decoded: T = _decoder(cast("Hashable", kind))(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswer(f"This is no {_name(kind)}: {error}") from error
    return decoded


@cache
def _decoder(annotation: Any) -> Decoder:
    """The function that turns JSON into what the annotation says."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _of_dataclass(annotation)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _optional([part for part in arguments if part is not types.NoneType])
    if origin is tuple:
        entry = _decoder(arguments[0])
        return lambda value: tuple(entry(part) for part in value)
    return lambda value: value


def _optional(parts: list[Any]) -> Decoder:
    inner = _decoder(parts[0]) if len(parts) == 1 else (lambda value: value)
    return lambda value: None if value is None else inner(value)


_SIMPLE: dict[Any, Decoder] = {datetime: datetime.fromisoformat, float: float}


def _of_dataclass(kind: type[Any]) -> Decoder:
    hints = typing.get_type_hints(kind)
    fields = [
        (each.name, str(each.metadata.get("wire", each.name)), _decoder(hints[each.name]))
        for each in dataclasses.fields(kind)
        if each.init and each.name != "raw"
    ]
    required = {
        each.name
        for each in dataclasses.fields(kind)
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{kind.__name__} is {type(value).__name__}")
        given: dict[str, Any] = {"raw": value}
        for name, wire_name, decoder in fields:
            if wire_name in value:
                given[name] = decoder(value[wire_name])
            elif name in required:
                raise ValueError(f"{kind.__name__}.{wire_name} is missing")
        return kind(**given)

    return read


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))

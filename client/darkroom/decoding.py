"""JSON into typed, frozen documents, with msgspec.

A client outlives the server it was written for, in both directions. Unknown fields are ignored
(`raw` has them), states and kinds are plain strings, and only a missing field without a default
or a value of the wrong type means that something other than this service has answered.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from darkroom.errors import APIResponseValidationError

T = TypeVar("T")


class Document(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The base of what the service answers."""

    hidden: ClassVar[tuple[str, ...]] = ()
    """Fields that a `repr` leaves out: secrets, and URLs that need no key."""

    @property
    def raw(self) -> Mapping[str, Any]:
        """The JSON object as received, including fields that this version does not know."""
        received: Mapping[str, Any] = self.__dict__.get("raw", {})
        return received

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        names = [name for name in self.__struct_fields__ if name not in self.hidden]
        return [(name, getattr(self, name)) for name in names]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> Any:
        return *super().__reduce__()[:2], self.__dict__


def decode(kind: type[T], value: Any) -> T:
    """The JSON value as `kind`.

    Raises:
        APIResponseValidationError: it has another shape; the message names the field.
    """
    try:
        decoded = msgspec.convert(value, kind, dec_hook=_decode_special)
    except msgspec.ValidationError as error:
        raise APIResponseValidationError(f"This is not a {kind.__name__}: {error}") from error
    keep_raw(decoded, value)
    return decoded


def _decode_special(kind: type[Any], value: Any) -> Any:
    """A type that knows itself how it is decoded."""
    return kind.decoded(value)


def keep_raw(decoded: Any, value: Any) -> None:
    """Give each document in the answer the JSON object that it was made from."""
    if type(decoded) is tuple:
        for part, source in zip(decoded, value, strict=True):
            keep_raw(part, source)
    elif isinstance(decoded, msgspec.Struct):
        if isinstance(decoded, Document):
            decoded.__dict__["raw"] = value
        for name, key in zip(
            decoded.__struct_fields__, decoded.__struct_encode_fields__, strict=True
        ):
            if value.get(key) is not None:
                keep_raw(getattr(decoded, name), value[key])

"""Read the header of a safetensors file, and refuse one that lies: no weights, no torch.

The format (https://github.com/huggingface/safetensors#format): 8 bytes of little-endian header
length, a JSON header with dtype, shape and byte range of each tensor, the data.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 100_000_000
"""As the reference implementation has it."""

_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class NotSafetensors(Exception):
    """The file is no safetensors file, or its header does not fit its data: half a sentence."""


class Truncated(NotSafetensors):
    """The header promises more data than there is."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, as the header has it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the header."""
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file says of itself."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(file: BinaryIO, size: int, max_header: int = MAX_HEADER_BYTES) -> SafetensorsHeader:
    """The header of a file of `size` bytes, read from its beginning.

    Raises:
        NotSafetensors: tensors overlap, leave gaps, or do not fill the file exactly.
        Truncated: the file ends before its tensors do.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(size - 8, max_header):
        raise NotSafetensors("the length of its header cannot be right")
    try:
        document = json.loads(file.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise NotSafetensors("its header is not JSON") from error
    if not isinstance(document, dict):
        raise NotSafetensors("its header is not a JSON object")
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise NotSafetensors("its metadata is not a table of strings")
    tensors = {name: _tensor(name, value) for name, value in document.items()}
    _check_ranges(tensors, size - 8 - length)
    return SafetensorsHeader(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key comes twice")
    return fields


def _tensor(name: str, value: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        bits = _BITS[dtype] * math.prod(shape)
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError) as error:
        raise NotSafetensors(f"its header does not describe the tensor {name!r:.80}") from error
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise NotSafetensors(f"its header gives {name!r:.80} an impossible shape or place")
    if (end - begin) * 8 != bits:
        raise NotSafetensors(f"the place of {name!r:.80} does not have the size of its shape")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _check_ranges(tensors: Mapping[str, TensorInfo], available: int) -> None:
    """Each byte of the data belongs to one tensor."""
    position = 0
    for tensor in sorted(tensors.values(), key=lambda one: (one.begin, one.end)):
        if tensor.begin != position:
            raise NotSafetensors("its tensors overlap or leave gaps")
        position = tensor.end
    if position > available:
        raise Truncated(f"{position - available} bytes are missing")
    if position < available:
        raise NotSafetensors(f"{available - position} bytes belong to no tensor")

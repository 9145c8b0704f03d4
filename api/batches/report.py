"""What is wrong with a batch's input, by line, and the report that says so."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from api.core.errors import FieldError


@dataclass(frozen=True, slots=True)
class LineError:
    """One finding of the validation report."""

    line: int | None
    """Counted from 1; None: the file as a whole."""
    custom_id: str | None
    pointer: str | None
    """JSON pointer (RFC 6901) into the line."""
    code: str
    message: str


class LineRefused(Exception):
    """A line that cannot become a job; it says all that is wrong with it."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__(errors[0].code)
        self.errors = errors

    @classmethod
    def because(cls, code: str, message: str, pointer: str | None = "") -> "LineRefused":
        """One reason; the pointer's default is the whole line."""
        return cls(FieldError(pointer=pointer, code=code, message=message))


class FileRefused(Exception):
    """The file cannot be read on from here, so that nothing of it is accepted."""

    def __init__(self, code: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.line = line


_SHOWN = 20
_CHUNK = 64 * 1024


class Report:
    """All errors of a file; its memory does not grow with their number."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[LineError] = []
        self._compressor = zlib.compressobj(6)
        self._parts: list[bytes] = []

    def add(self, error: LineError) -> None:
        """One more error."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(error)
        text = json.dumps({"type": "validation", **asdict(error)}) + "\n"
        self._parts.append(self._compressor.compress(text.encode("ascii")))

    def compressed(self) -> bytes:
        """The JSONL, compressed with zlib. The report takes no more errors after this."""
        self._parts.append(self._compressor.flush())
        return b"".join(self._parts)

    def field_errors(self, source: str) -> list[FieldError]:
        """The first errors as a problem shows them."""
        return [
            FieldError(
                pointer=_pointer_into_body(error) if source == "json" else error.pointer,
                parameter=None if source == "json" else "file",
                code=error.code,
                message=f"Line {error.line}: {error.message}" if error.line else error.message,
            )
            for error in self.first
        ]


def _pointer_into_body(error: LineError) -> str:
    if error.line is None:
        return "/items"
    return f"/items/{error.line - 1}{error.pointer or ''}"


def unpack(jsonl_zlib: bytes) -> Iterator[bytes]:
    """A kept report as JSONL, piece by piece."""
    decompressor = zlib.decompressobj()
    data = jsonl_zlib
    while data:
        yield decompressor.decompress(data, _CHUNK)
        data = decompressor.unconsumed_tail
    yield decompressor.flush()

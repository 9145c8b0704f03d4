"""What can be wrong with a batch's input: in one line, or with the file as a whole."""

from dataclasses import dataclass

from api.problems import FieldError


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

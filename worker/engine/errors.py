"""What a future of the engine raises besides the job errors of `shared.core.errors`."""


class Canceled(Exception):
    """The caller took the image back, or the engine was closed, before the image was done."""

    def __init__(self, message: str = "The image was canceled.") -> None:
        super().__init__(message)


class EngineClosed(RuntimeError):
    """`submit` was called before `load`, or after `close`."""

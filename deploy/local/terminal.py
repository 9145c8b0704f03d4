"""What the local stack prints: sober in a terminal, plain text anywhere else."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text


class Terminal:
    """Lines for the user. A terminal that has gone away is no reason to fail."""

    def __init__(self) -> None:
        """Writes to standard output."""
        self._console = Console(highlight=False, soft_wrap=True, file=sys.stdout)

    def say(self, message: str, style: str = "") -> None:
        """Prints a message as it is."""
        with contextlib.suppress(OSError):
            self._console.print(Text(message, style=style))
            sys.stdout.flush()

    def fail(self, message: str) -> None:
        """Prints what went wrong; the first line is the sentence, the rest is evidence."""
        sentence, _, evidence = message.partition("\n")
        self.say(sentence, "bold red")
        if evidence:
            self.say(evidence, "dim")

    def fact(self, name: str, value: object) -> None:
        """Prints a name and a value, aligned with its neighbours."""
        with contextlib.suppress(OSError):
            self._console.print(Text(f"  {name:<16}", style="dim") + Text(str(value)))
            sys.stdout.flush()

    @contextlib.contextmanager
    def step(self, name: str, detail: object = "") -> Iterator[None]:
        """Prints what was done and how long it took, once it is done.

        In a terminal it shows meanwhile that it is being done.
        """
        began = time.monotonic()
        with self._console.status(name) if self._console.is_terminal else contextlib.nullcontext():
            yield
        self.fact(name, f"{detail!s:<42}{time.monotonic() - began:5.1f} s")

"""The catalogue of problem types: every error that the API can answer with.

It stands in `error_catalogue.toml`. The API's problems and OpenAPI are made from it. So are
`docs/errors.md` and the exceptions of the client (`client/darkroom/_problems.py`): run
`python -m deploy.error_reference` after a change.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProblemType:
    """One way in which a request can fail."""

    code: str
    """Stable: never changes once released."""
    status: int
    title: str
    """What happened, in one line."""
    meaning: str
    """One sentence."""
    advice: str
    """What the caller can do about it."""
    see: str | None = None
    """An operation that tells more."""
    retryable: bool = False
    """Whether the same request can succeed later, unchanged."""

    @property
    def doc(self) -> str:
        """The meaning and the advice."""
        more = f" See {self.see}." if self.see else ""
        return f"{self.meaning} {self.advice}{more}"


_FILE = Path(__file__).with_suffix(".toml")
CATALOGUE: dict[str, ProblemType] = {
    code: ProblemType(code, **fields)
    for code, fields in tomllib.loads(_FILE.read_text("utf-8")).items()
}
"""By code, ordered by status."""

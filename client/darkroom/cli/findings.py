"""What a check of `darkroom doctor` has found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from darkroom import Client

State = Literal["ok", "warning", "fault", "unknown"]


@dataclass(frozen=True)
class Check:
    """One finding. `advice` is None where there is nothing to do."""

    name: str
    state: State
    finding: str
    advice: str | None = None


Look = Callable[["Client"], Iterator[Check]]

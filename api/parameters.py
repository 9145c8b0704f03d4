"""Query parameters that an operation does not have are refused.

A misspelt filter would otherwise widen a search, or a deletion made from it, without a word. Bodies
refuse unknown fields for the same reason.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from api.auth import authenticate
from api.principal import Principal
from api.problems import FieldError, Problem
from api.problems.problem import MAX_ERRORS, MAX_TEXT

F = TypeVar("F", bound=Callable[..., Any])

_open_ended: dict[Callable[..., Any], str] = {}
_declared: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}
"""By operation: its parameters, and the beginnings of those that clients name."""


def open_ended(prefix: str) -> Callable[[F], F]:
    """Mark a dependency that reads any parameter which begins so."""

    def mark(dependency: F) -> F:
        _open_ended[dependency] = prefix
        return dependency

    return mark


async def refuse_unknown_parameters(
    request: Request, _: Annotated[Principal, Depends(authenticate)]
) -> None:
    """A dependency of every router whose requests need a key.

    Raises:
        Problem: 422 `validation_failed`, which names them and says what there is.
    """
    if not request.query_params:
        return
    route = request.scope["route"]
    if route.operation_id not in _declared:
        found = list(_dependants(route.dependant))
        _declared[route.operation_id] = (
            frozenset(field.alias for one in found for field in one.query_params),
            tuple(_open_ended[one.call] for one in found if one.call in _open_ended),
        )
    names, prefixes = _declared[route.operation_id]
    unknown = [
        name for name in request.query_params if name not in names and not name.startswith(prefixes)
    ]
    if unknown:
        known = [*sorted(names), *(f"{prefix}<key>" for prefix in prefixes)]
        message = f"There is no such parameter; there are: {', '.join(known) or 'none'}."
        raise Problem(
            "validation_failed",
            f"{unknown[0][:MAX_TEXT]}: {message}",
            errors=[
                FieldError(
                    pointer=None,
                    parameter=name[:MAX_TEXT],
                    code="unknown_parameter",
                    message=message,
                )
                for name in unknown[:MAX_ERRORS]
            ],
        )


def _dependants(dependant: Any) -> Iterator[Any]:
    yield dependant
    for below in dependant.dependencies:
        yield from _dependants(below)

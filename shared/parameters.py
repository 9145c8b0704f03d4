"""Statements that are built once and run with other values each time.

To build one takes several times as long as to run it, so those on the paths of every job and every
search are kept, with names in place of their values.
"""

from typing import Any, TypeVar

from sqlalchemy import BindParameter, bindparam
from sqlalchemy.sql.selectable import Select

S = TypeVar("S", bound=Select[*tuple[Any, ...]])


def given(name: str, type_: Any) -> BindParameter[Any]:
    """A value that comes with `with_given`."""
    return bindparam(f"given_{name}", type_=type_)


def with_given(statement: S, **values: Any) -> S:
    """A statement that was built once, with the values of this time."""
    return statement.params({f"given_{name}": value for name, value in values.items()})

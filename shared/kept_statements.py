"""Statements that are built once and run with other values each time.

To build one takes several times as long as to run it, so those on the paths of every job and every
search are kept, with names in place of their values.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, ParamSpec, TypeVar, cast

from sqlalchemy import BindParameter, bindparam
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql.selectable import Select

P = ParamSpec("P")
S = TypeVar("S", bound=Select[*tuple[Any, ...]])

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]
_ONE_AT_A_TIME = threading.RLock()


class BuiltOnce(Generic[P, S]):
    """A function that builds a statement, and what it has built for its latest arguments.

    A statement is compiled before any thread gets it. SQLAlchemy (2.1) fills some of a statement's
    indices of columns at its first compilation, without a lock: two threads that compile the same
    new one at once can end with SQL that joins a table to itself, and keep it for good.
    """

    def __init__(self, build: Callable[P, S], at_most: int | None) -> None:
        def build_and_compile(*args: P.args, **kwargs: P.kwargs) -> S:
            statement = build(*args, **kwargs)
            statement.compile(dialect=_DIALECT)
            return statement

        kept = lru_cache(at_most)(build_and_compile)
        self._kept = cast("Callable[P, S]", kept)
        self._forget = kept.cache_clear

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> S:
        """The statement for these arguments, which must be hashable."""
        with _ONE_AT_A_TIME:
            return self._kept(*args, **kwargs)

    def forget(self) -> None:
        """Build anew from now on."""
        with _ONE_AT_A_TIME:
            self._forget()


def built_once(at_most: int | None = None) -> Callable[[Callable[P, S]], BuiltOnce[P, S]]:
    """Keep what the function builds, for the latest `at_most` arguments where there may be many."""
    return lambda build: BuiltOnce(build, at_most)


def given(name: str, type_: Any) -> BindParameter[Any]:
    """A value that comes with `with_given`."""
    return bindparam(f"given_{name}", type_=type_)


def with_given(statement: S, **values: Any) -> S:
    """A statement that was built once, with the values of this time."""
    return statement.params({f"given_{name}": value for name, value in values.items()})

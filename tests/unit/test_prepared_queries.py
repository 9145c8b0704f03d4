"""Statements that are kept and shared by the threads of a worker."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Select, Uuid, select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from shared.core.database import cached_query, param, with_params
from shared.images.models import Image
from shared.jobs.models import Job
from shared.jobs.queries import claims, endings
from tests.jobs import as_one

_THREADS = 8
DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that interrupt each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(build: Any) -> set[str]:
    """The SQL of a statement that many threads get and compile for the first time at once."""
    start = threading.Barrier(_THREADS)

    def compiled(_: int) -> str:
        start.wait()
        return str(build().compile(dialect=DIALECT))

    with ThreadPoolExecutor(_THREADS) as threads:
        return set(threads.map(compiled, range(_THREADS)))


def claim() -> Any:
    return as_one(claims.claim(uuid4(), "worker", "device", timedelta(seconds=30)))


def succeed() -> Any:
    columns = {"id": uuid4(), "tenant_id": uuid4(), "seed": 1}
    return as_one(endings.succeed(uuid4(), 1, 0.5, images=[columns], prompt_sha256=b"hash"))


@pytest.mark.long
@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize(
    ("build", "kept", "changed"),
    [(claim, claims._claim, "claimed"), (succeed, endings._succeed, "ended")],
)
def test_threads_that_share_a_new_statement_all_run_the_same_sql(
    build: Any, kept: Any, changed: str
) -> None:
    """Else a worker's first jobs, started at once, end in SQL that joins all jobs to themselves.

    A thread gets the statement while another one compiles it, so it is built before they start.
    """
    for _ in range(20):
        kept.clear()
        build()
        [sql] = in_threads(build)
        assert sql.endswith(f"FROM {changed}")  # and not `jobs` as well


def test_a_statement_is_built_once_for_each_argument() -> None:
    built: list[str] = []

    @cached_query()
    def by(column: str) -> Select[Any]:
        built.append(column)
        return select(Job.id).where(getattr(Job, column) == param("value", Uuid))

    first, again = with_params(by("id"), value=uuid4()), with_params(by("id"), value=uuid4())
    by("tenant_id")
    assert built == ["id", "tenant_id"]
    assert str(first) == str(again)
    assert first.compile().params != again.compile().params
    by.clear()
    by("id")
    assert built == ["id", "tenant_id", "id"]


def test_only_the_latest_are_kept_where_there_may_be_many() -> None:
    built: list[int] = []

    @cached_query(at_most=2)
    def limited(rows: int) -> Select[Any]:
        built.append(rows)
        return select(Image.id).limit(rows)

    for rows in (1, 2, 3, 3, 1):
        limited(rows)
    assert built == [1, 2, 3, 1]

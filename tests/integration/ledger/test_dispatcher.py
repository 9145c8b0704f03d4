"""Leadership: one dispatcher leads, and another does when it dies or freezes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import Process, wait_until


@contextmanager
def dispatcher(url: str, sign: Path, environment: dict[str, str]) -> Iterator[Process]:
    database = url.replace("+psycopg", "")
    process = Process(
        {**environment, "DARKROOM_DATABASE_URL": database},
        ["-m", "tests.lone_dispatcher", str(sign)],
        sign.with_suffix(".log"),
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()


def leaders(sign: Path) -> list[int]:
    return [int(line) for line in sign.read_text().split()] if sign.exists() else []


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGSTOP])
def test_another_leads_when_the_leader_is_gone(
    quiet_url: str, environment: dict[str, str], tmp_path: Path, way: signal.Signals
) -> None:
    sign = tmp_path / "leaders"
    with dispatcher(quiet_url, sign, environment) as first:
        wait_until(lambda: leaders(sign), 60, "the first leader")
        with dispatcher(quiet_url, sign, environment) as second:
            first.send(way)
            wait_until(lambda: second.child.pid in leaders(sign), 60, "the second leader")
            if way is signal.SIGSTOP:
                first.send(signal.SIGCONT)
            so_far = len(leaders(sign))
            wait_until(lambda: len(leaders(sign)) > so_far + 10, 30, "more rounds")
    # A leader that wakes up may finish the duty that it was in; it leads no more.
    assert leaders(sign)[so_far:].count(first.child.pid) <= 1

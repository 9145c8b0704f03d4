"""A supervisor that is killed leaves nothing behind that the next start cannot take over."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from deploy.local.process import ChildProcess, Program, stop_orphans
from deploy.local.servers import EmbeddedServers
from tests.processes import wait_until

SUPERVISOR = textwrap.dedent("""
    import json, signal, sys
    from pathlib import Path
    from deploy.local.servers import EmbeddedServers

    servers = EmbeddedServers(Path(sys.argv[1]), durable=False)
    servers.start()
    print(json.dumps([server.pid for server in servers.all]), flush=True)
    signal.pause()
""")


@pytest.fixture
def killed_supervisor(home: Path) -> Iterator[list[psutil.Process]]:
    """The servers of a supervisor that has just been killed with SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(home)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(supervisor.stdout.readline())]
        supervisor.kill()
    yield children
    for child in children:
        if child.is_running():
            child.kill()


def sleeper(tmp_path: Path, *, ignore_sigterm: bool = False) -> Program:
    code = textwrap.dedent(f"""
        import signal, sys, time

        def on_sigterm(*_):
            print("got SIGTERM", flush=True)
            if not {ignore_sigterm}:
                sys.exit()

        signal.signal(signal.SIGTERM, on_sigterm)
        print("up", flush=True)
        while True:
            time.sleep(600)
    """)
    return Program(
        name="sleeper",
        command=[sys.executable, "-c", code],
        environment=dict(os.environ),
        log=tmp_path / "sleeper.log",
        record=tmp_path / "sleeper.json",
    )


def wait_for_log(program: Program, text: str) -> None:
    wait_until(lambda: text in program.log.read_text(), what=f"{text!r} in the log")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_servers_end_with_their_supervisor(killed_supervisor: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(killed_supervisor, timeout=20)
    assert alive == []


def test_the_next_start_takes_the_home_over(
    home: Path, killed_supervisor: list[psutil.Process]
) -> None:
    # At once: the old servers may still be on their way out.
    with EmbeddedServers(home, durable=False) as servers:
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.ping()
        assert not any(child.is_running() for child in killed_supervisor)


def test_an_orphan_on_record_is_stopped(tmp_path: Path) -> None:
    child = ChildProcess(sleeper(tmp_path))
    wait_for_log(child.program, "up")
    stop_orphans([child.program.record])
    assert child.wait(10)
    assert "got SIGTERM" in child.program.log.read_text()
    assert not child.program.record.exists()


def test_an_orphan_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = ChildProcess(sleeper(tmp_path, ignore_sigterm=True))
    wait_for_log(child.program, "up")
    stop_orphans([child.program.record], seconds=1)  # in which it has to say that it was asked
    assert child.wait(10)
    assert "got SIGTERM" in child.program.log.read_text()


def test_a_process_that_got_an_old_number_is_left_alone(tmp_path: Path) -> None:
    child = ChildProcess(sleeper(tmp_path))
    try:
        wait_for_log(child.program, "up")
        record = json.loads(child.program.record.read_text())
        stale = tmp_path / "stale.json"
        stale.write_text(json.dumps({**record, "started": record["started"] - 3600}))
        stop_orphans([stale])
        assert child.running
    finally:
        child.kill()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 0}', '{"pid": 4194999, "started": 1}'])
def test_half_a_record_is_no_process(tmp_path: Path, text: str) -> None:
    record = tmp_path / "half.json"
    record.write_text(text)
    stop_orphans([record])
    assert not record.exists()


def test_a_lock_file_that_names_a_stranger_does_not_keep_postgres_down(home: Path) -> None:
    with EmbeddedServers(home, durable=False) as servers:
        lock_file = home / "postgres" / "data" / "postmaster.pid"
        stranger = ChildProcess(sleeper(home))
        try:
            wait_for_log(stranger.program, "up")
            lines = lock_file.read_text().splitlines()
            servers.postgres.kill()
            # The number of the dead server went to another program, as after a reboot.
            lock_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            servers.postgres.start()
            assert servers.postgres.running
            assert stranger.running
        finally:
            stranger.kill()

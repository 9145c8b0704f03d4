"""A part that dies is started again, each time a little later; a full disk is waited out."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.local import service as service_module
from deploy.local.home import write_private
from deploy.local.process import Program
from deploy.local.service import Restarter, Service
from tests.processes import wait_until

FULL = Path("/dev/full")


class Part(Service):
    """A program that stays, or ends at once while its folder holds the file ``broken``."""

    name = "part"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        (self._folder / "up").unlink(missing_ok=True)
        write_private(self._folder / "part.conf", "settings\n")

    def program(self) -> Program:
        code = (
            "import pathlib, sys, time\n"
            "if pathlib.Path('broken').exists(): sys.exit('cannot go on')\n"
            "pathlib.Path('up').touch(); time.sleep(600)"
        )
        return Program(
            name=self.name,
            command=[sys.executable, "-c", code],
            environment=dict(os.environ),
            log=self._folder / "part.log",
            record=self._folder / "part.json",
            cwd=self._folder,
        )

    def answers(self) -> bool:
        return (self._folder / "up").exists()


def first_message(
    restarter: Restarter, stop: threading.Event, wanted: Callable[[str], bool]
) -> str:
    def said() -> str | None:
        message = restarter.check(stop)
        return message if message and wanted(message) else None

    message: str = wait_until(said, what="the message of the keeper")
    return message


def test_a_dead_part_runs_again(tmp_path: Path) -> None:
    part, stop = Part(tmp_path), threading.Event()
    part.start()
    try:
        restarter = Restarter(part)
        assert restarter.check(stop) is None
        part.kill()
        assert "part ended by SIGKILL" in (restarter.check(stop) or "")
        first_message(restarter, stop, lambda message: message == "part runs again")
        assert part.running
    finally:
        part.stop()


def test_a_part_that_keeps_dying_is_tried_more_and_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(service_module, "LONGEST_DELAY", 0.04)
    part, stop = Part(tmp_path), threading.Event()
    part.start()
    try:
        restarter = Restarter(part)
        (tmp_path / "broken").touch()
        part.kill()
        for delay in ("0.01", "0.02", "0.04", "0.04"):
            message = first_message(restarter, stop, lambda message: "started again" in message)
            assert f"started again in {delay} s" in message
        assert "cannot go on" in message
        (tmp_path / "broken").unlink()
        first_message(restarter, stop, lambda message: message == "part runs again")
    finally:
        part.stop()


def working_in(folder: Path) -> list[int]:
    """The processes whose working folder this is."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()) == folder:
                found.append(process.pid)
    return found


@pytest.mark.long
@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("half", ["part.half", ".part.conf.half"], ids=["record", "settings"])
def test_a_full_disk_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    monkeypatch.setattr(service_module, "LONGEST_DELAY", 0.5)
    part, stop = Part(tmp_path), threading.Event()
    part.start()
    try:
        restarter = Restarter(part)
        (tmp_path / half).symlink_to(FULL)
        part.kill()
        for _ in range(3):
            first_message(restarter, stop, lambda message: "No space left on device" in message)
            assert not part.running
        assert working_in(tmp_path) == [], "a child without a record was left behind"
        (tmp_path / half).unlink()
        first_message(restarter, stop, lambda message: message == "part runs again")
        assert (tmp_path / "part.json").exists()
    finally:
        part.stop()

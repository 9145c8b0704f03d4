"""One child process: started in a session of its own, recorded, stopped, taken over if orphaned."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from deploy.local.host import Account, ServerFailedError, wait_until

_LAUNCH = Path(__file__).with_name("launch.py")
# Linux sends the death signal when the *thread* that forked ends. This one lives as long as the
# program, so a server started from a short-lived thread is not taken down with it.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
# psutil derives a start time from the boot time, which moves a little when the clock is set.
_SAME_START_SECONDS = 1.0


@dataclass(frozen=True)
class Program:
    """What to run, and how it wants to be asked to stop."""

    name: str
    command: Sequence[str]
    """The first item is an absolute path."""
    environment: Mapping[str, str]
    log: Path
    record: Path
    """Where the child's identity is kept, so that the next start can find an orphan."""
    stop_signal: signal.Signals = signal.SIGTERM
    account: Account | None = None
    cwd: Path | None = None
    input: socket.socket | None = None
    """Its standard input, which else is empty."""
    fork: "Callable[[Program], Forked] | None" = None
    """How to have it without starting it anew."""


class Forked:
    """A child that another process has forked for this one; what `ChildProcess` needs of Popen."""

    def __init__(self, pid: int) -> None:
        """``pid`` is a child of this process by now."""
        self.pid = pid
        self._lock = threading.Lock()
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with self._lock:
            if self._code is None:
                try:
                    ended, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # somebody else has waited for it; Popen says the same
                    ended, status = self.pid, 0
                self._code = os.waitstatus_to_exitcode(status) if ended else None
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after these seconds.
        """
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class ChildProcess:
    """A running program, tied to the life of this process."""

    def __init__(self, program: Program) -> None:
        """Starts the program.

        Raises:
            ServerFailedError: it could not be started at all.
        """
        self.program = program
        self._lock = threading.Lock()
        self._stop_requested = False
        self._popen = _spawner.submit(_start, program).result()

    @property
    def pid(self) -> int:
        """The process id, valid while the program runs."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        with self._lock:
            return self._popen.poll()

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def ask_to_stop(self) -> None:
        """Sends the program's own stop signal, once: Celery takes a second one for haste."""
        if not self._stop_requested:
            self._stop_requested = True
            self._send(self.program.stop_signal)

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._send(signal.SIGKILL)
        self.wait(5)

    def wait(self, seconds: float) -> bool:
        """Whether the program ended within ``seconds``."""
        try:
            self._popen.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        _delete_record(self.program.record)
        return True

    def stop(self, seconds: float) -> None:
        """Asks, waits ``seconds``, then kills."""
        self.ask_to_stop()
        if not self.wait(seconds):
            self.kill()

    def require_running(self) -> bool:
        """True; made for `wait_until` conditions.

        Raises:
            ServerFailedError: the program has ended; the message carries the end of its log.
        """
        code = self.exit_code
        if code is not None:
            _delete_record(self.program.record)
            raise ServerFailedError(describe_failure(self.program, code))
        return True

    def _send(self, number: signal.Signals) -> None:
        with self._lock:
            if self._popen.poll() is None:
                self._popen.send_signal(number)


def describe_failure(program: Program, code: int) -> str:
    """A sentence about how the program ended and the last lines it wrote."""
    how = f"with exit code {code}"
    if code < 0:
        how = f"by {signal.Signals(-code).name}"
    sentence = f"{program.name} ended {how}; its log is {program.log}"
    lines = last_lines(program.log)
    return "\n".join([sentence, *(f"    {line}" for line in lines)])


def last_lines(log: Path) -> list[str]:
    """The end of a log file: 30 lines, and no more than its last 64 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            return file.read().decode("utf-8", "replace").splitlines()[-30:]
    except OSError:
        return []


def stop_orphans(records: list[Path], seconds: float = 10.0) -> None:
    """Stops what a dead supervisor left behind, each only if it is still the recorded process.

    Process ids are used again, so the start time must agree; a process of somebody else is never
    touched.
    """
    processes = [_recorded_process(record) for record in records]
    stop_processes([orphan for orphan in processes if orphan is not None], seconds)
    for record in records:
        _delete_record(record)


def stop_processes(
    processes: list[tuple[psutil.Process, signal.Signals]], seconds: float = 10.0
) -> None:
    """Asks each to end by its signal, waits ``seconds`` for all of them, then kills.

    Raises:
        ServerFailedError: one of them is still there, for instance of another account.
    """
    for process, stop_signal in processes:
        try:
            process.send_signal(stop_signal)
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise ServerFailedError(
                f"process {process.pid} is left from an earlier start by another account; end it"
            ) from error
    _, alive = psutil.wait_procs([process for process, _ in processes], timeout=seconds)
    for process in alive:
        process.kill()
    _, alive = psutil.wait_procs(alive, timeout=5)
    if alive:
        raise ServerFailedError(f"process {alive[0].pid} of an earlier start cannot be ended")


def _recorded_process(record: Path) -> tuple[psutil.Process, signal.Signals] | None:
    try:
        identity = json.loads(record.read_text())
        process = psutil.Process(int(identity["pid"]))
        started = process.create_time()
        recorded = float(identity["started"])
        stop_signal = signal.Signals(int(identity["signal"]))
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None  # no record, half a record, or the process is gone
    if abs(started - recorded) > _SAME_START_SECONDS:
        return None
    return process, stop_signal


def _start(program: Program) -> "subprocess.Popen[bytes] | Forked":
    try:
        child = (program.fork or _spawn)(program)
        try:
            _write_record(program.record, child.pid, program.stop_signal)
        except BaseException:
            # Without a record nobody could find it again, and its port would stay taken.
            child.send_signal(signal.SIGKILL)
            child.wait(5)
            raise
    except OSError as error:
        raise ServerFailedError(f"{program.name} cannot be started: {error}") from error
    return child


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    account = program.account
    wanted = {
        "parent": os.getpid(),
        "signal": int(program.stop_signal),
        "account": [account.user, account.group] if account else None,
        "override": account.override if account else False,
    }
    launcher = [sys.executable, "-I", "-S", str(_LAUNCH), json.dumps(wanted)]
    with program.log.open("ab") as log:
        return subprocess.Popen(
            [*launcher, *program.command],
            stdin=program.input.fileno() if program.input else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(program.environment),
            cwd=program.cwd,
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which
            # then stops its children in the right order.
            start_new_session=True,
        )


def _delete_record(record: Path) -> None:
    # One that stays, on a disk that takes no more writes, names a process that is gone.
    with contextlib.suppress(OSError):
        record.unlink()


def _write_record(record: Path, pid: int, stop_signal: signal.Signals) -> None:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return  # ended already; whoever waits for it will say so
    identity = {"pid": pid, "started": started, "signal": int(stop_signal)}
    half = record.with_suffix(".half")
    half.write_text(json.dumps(identity))
    half.replace(record)


def wait_for_answer(
    child: ChildProcess,
    answers: Callable[[], bool],
    *,
    seconds: float,
    stop: threading.Event | None = None,
) -> None:
    """Returns when ``answers`` is true; kills the child when it is not true in time.

    Raises:
        ServerFailedError: the child ended, or did not answer within ``seconds``.
        StopRequestedError: ``stop`` was set meanwhile.
    """
    try:
        wait_until(
            lambda: child.require_running() and answers(),
            what=child.program.name,
            seconds=seconds,
            stop=stop,
        )
    except BaseException:
        child.stop(5)
        raise

"""The system's own processes, started and stopped by tests the way an operator would."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx2

from deploy.local import host
from shared.core.settings import Settings
from tests import fork_server

PROJECT = fork_server.PROJECT
_READY_SECONDS = 90.0


def wait_until(
    condition: Callable[[], Any], seconds: float = 30.0, what: str = "the condition"
) -> Any:
    """Poll until the condition gives something true, and return it.

    The seconds are those of an idle machine: a loaded one gets more, as many as it is slower.

    Raises:
        AssertionError: it did not within the time.
    """
    began = time.monotonic()
    while True:
        # Before the look: one that took its time itself is not the last.
        is_late = time.monotonic() - began > seconds * slowness()
        if value := condition():
            return value
        if is_late:
            raise AssertionError(f"{what} did not come about within {seconds:g} s")
        time.sleep(0.02)


def slowness() -> float:
    """How many processes want each core, one at least: so much longer does everything take."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Stopwatch:
    """Seconds since it was made, less those for which these processes, and this one, have waited
    for a core: what they took on a machine that had one for each."""

    def __init__(self, *processes: "Process") -> None:
        self._pids = [os.getpid(), *(process.child.pid for process in processes)]
        self._began = time.monotonic()
        self._before = [_waits_for_a_core(pid) for pid in self._pids]

    @property
    def seconds(self) -> float:
        """So far."""
        passed = time.monotonic() - self._began
        for pid, before in zip(self._pids, self._before, strict=True):
            after = _waits_for_a_core(pid)
            # Threads wait side by side: the one that waited longest counts.
            passed -= max(after[thread] - before.get(thread, 0.0) for thread in after)
        return passed


def _waits_for_a_core(pid: int) -> dict[str, float]:
    """For how long each thread has been ready to run and did not (proc(5), schedstat)."""
    waits = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            waits[thread.name] = int((thread / "schedstat").read_text("ascii").split()[1]) / 1e9
    return waits


def settings_of(environment: Mapping[str, str]) -> Settings:
    """As a process with this environment would read them."""
    values: dict[str, Any] = {
        name.removeprefix("DARKROOM_").lower(): value for name, value in environment.items()
    }
    return Settings(**values)


def share_ports(part: int, parts: int) -> None:
    """Choose ports, here and in the stack's own code, in this one of so many parts of them all.

    A port is chosen seconds before a server listens on it, and another process of tests that
    chooses meanwhile finds it free as well.
    """
    host._CHOSEN_FROM = host._CHOSEN_FROM[part::parts]


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that was not given to anybody here before."""
    port = host.choose_port(_given)
    _given.add(port)
    return port


class Process:
    """`python ARGUMENTS` with its log in a file."""

    imports = ""
    """The kind of fork server that has imported what it needs; none if empty."""
    warm = False
    """Fork processes instead of starting them. Measurements start theirs anew."""

    def __init__(
        self,
        environment: Mapping[str, str],
        arguments: Sequence[str],
        log: Path,
        python: str = sys.executable,
    ) -> None:
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._arguments = [python, *arguments]
        self.log = log
        self._said_before = 0
        self._child: subprocess.Popen[bytes] | fork_server.ForkedProcess | None = None

    @property
    def child(self) -> subprocess.Popen[bytes] | fork_server.ForkedProcess:
        """The running child."""
        assert self._child is not None, "the process was not started"
        return self._child

    def start(self) -> None:
        """Start it; does not wait."""
        self.log.touch()
        self._said_before = self.log.stat().st_size
        if self.warm and self.imports:
            command = self._arguments[2:]  # behind `python -m`
            self._child = fork_server.fork(self.imports, command, self._environment, self.log)
            return
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._arguments,
                env=self._environment,
                cwd=PROJECT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def send(self, which: signal.Signals) -> None:
        """Send a signal."""
        self.child.send_signal(which)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stand still for a while: what it would do next waits for the end of the block."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.child.kill()
        self.child.wait()

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM, and wait; SIGKILL after `seconds` of an idle machine. Returns the exit code."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.terminate()
        try:
            return self.child.wait(seconds * slowness())
        except subprocess.TimeoutExpired:
            self.kill()
            return int(self.child.returncode or 0)

    def wait_for_log(self, text: str, seconds: float = _READY_SECONDS) -> None:
        """Wait until the log says something, since the last start.

        Raises:
            AssertionError: it did not, or the process ended; with the end of the log.
        """

        def said() -> bool:
            has_ended = self.child.poll() is not None  # before the look at its last words
            if text in self.said():
                return True
            assert not has_ended, f"the process ended:\n{self.tail()}"
            return False

        wait_until(said, seconds, f"the line {text!r} in the log")

    def said(self) -> str:
        """What the log says since the last start."""
        return self.log.read_bytes()[self._said_before :].decode("utf-8", "replace")

    def peak_bytes(self) -> int:
        """The most memory that it has had at once."""
        return self._bytes("VmHWM")

    def resident_bytes(self) -> int:
        """The memory that it has now."""
        return self._bytes("VmRSS")

    def _bytes(self, name: str) -> int:
        status = Path(f"/proc/{self.child.pid}/status").read_text("ascii")
        [line] = [line for line in status.splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024

    def forget_peak(self) -> None:
        """Let the peak begin anew (proc(5), clear_refs)."""
        Path(f"/proc/{self.child.pid}/clear_refs").write_text("5", "ascii")

    def cpu_seconds(self) -> float:
        """What it has computed so far, whatever else the machine did meanwhile."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])


class Service(Process):
    """One that says when it is ready; a context manager."""

    def wait_ready(self) -> None:
        """Wait until it consumes."""
        self.wait_for_log("worker_ready")

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class WorkerProcess(Service):
    """`darkroom-server worker …`."""

    imports = "heavy"

    def __init__(
        self,
        environment: Mapping[str, str],
        arguments: Sequence[str],
        log: Path,
        *,
        module: str = "worker",
    ) -> None:
        super().__init__(environment, ["-m", module, *arguments], log)


QUICK_WORKER = "tests.quick_worker"
"""The CPU worker for tests that wait for what it looks at now and then."""

PATIENT = "tests.patient_api:create_app"
"""The API for tests in which no server is away: one that is slow gets the time that it takes."""

QUICK = "tests.quick_api:create_app"
QUICK_AND_PATIENT = "tests.quick_api:create_patient_app"
"""The API for tests that wait for what it looks at every few seconds."""

_TLS = ssl.create_default_context()
"""Made once: to read the trusted certificates takes 20 ms, and the API speaks plain HTTP."""


class ApiProcess(Service):
    """The API under uvicorn, and a client for it."""

    imports = "light"

    def __init__(
        self,
        environment: Mapping[str, str],
        port: int,
        key: str,
        log: Path,
        *,
        factory: str = "api.app:create_app",
    ) -> None:
        arguments = [
            *("-m", "uvicorn", factory, "--factory", "--http", "api.core.connection:Connection"),
            *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"),
            *("--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "1"),
        ]
        self.url = f"http://127.0.0.1:{port}"
        self.key = key
        super().__init__({**environment, "DARKROOM_PUBLIC_URL": self.url}, arguments, log)
        self.http = self.client(key)

    def client(
        self, key: str | None, transport: httpx2.BaseTransport | None = None
    ) -> httpx2.Client:
        """A client with another key, or with none. What hangs is for pytest's timeout to end."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(
            base_url=self.url,
            headers=headers,
            verify=_TLS,
            timeout=300,
            trust_env=False,
            transport=transport,
        )

    def wait_ready(self) -> None:
        """Wait until the API and all it depends on answer."""

        def ready() -> bool:
            assert self.child.poll() is None, f"the API ended:\n{self.tail()}"
            try:
                return self.http.get("/readyz").status_code == 200
            except httpx2.TransportError:
                return False

        wait_until(ready, _READY_SECONDS, "the API")

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.stop()


@contextmanager
def together(*processes: Service) -> Iterator[None]:
    """Start them side by side, and let them end so."""
    with ExitStack() as started:
        for process in processes:
            process.start()
            started.push(process)
        for process in processes:
            process.wait_ready()
        yield
        for process in processes:
            process.child.terminate()

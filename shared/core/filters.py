"""The operator's filters, as the process that asks them sees them; nothing runs where none is set.

They run in one process of their own (`shared.core.filter_process`), which is started at the first
question and answers one after the other. One that does not answer within the deadline is killed,
and the next question starts a new process.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import Histogram

from shared.core.errors import FilterUnavailable
from shared.core.filter_process import BUILT_IN, MadeImage, Prompt, Setup, Side, Verdict
from shared.core.logging import get_logger
from shared.core.metrics import show_zeros
from shared.core.model_catalog import ModelSpec
from shared.core.settings import Settings, SettingsError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ENTRY_POINTS = "darkroom.filters"
"""The group in which packages declare their filters."""
NOT_CHECKED = "It was not checked: the filter failed or took too long."

_PROCESS = "from shared.core.filter_process import main; main()"
_START_SECONDS = 300.0
"""What loading the filters may take: a safety checker has gigabytes of weights."""
_PAUSE_SECONDS = 5.0
"""After a start that failed, so that not every question tries it again."""
_SLICE_SECONDS = 0.2
"""How often whoever waits looks whether it should give up."""

_log = get_logger(__name__)
CHECKS = Histogram(
    "darkroom_filter_seconds",
    "What a filter took for one prompt or image, by its outcome: allow, refuse, mark, failed, "
    "timed_out.",
    ["filter", "side", "outcome"],
    buckets=(0.0005, 0.002, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class Finding(NamedTuple):
    """What a filter has against a prompt or an image."""

    filter: str
    reason: str

    @property
    def text(self) -> str:
        """For a message."""
        return f"{self.filter}: {self.reason}"


class Findings(NamedTuple):
    """What all filters say. One that refuses is the last that was asked."""

    refusal: Finding | None = None
    marks: tuple[Finding, ...] = ()


NOTHING = Findings()


def _never() -> bool:
    return False


def filtered_images(filtered: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What clients are told of images that were refused, by the column `jobs.filtered`."""
    told = ("index", "seed", "filter", "reason")
    return [{"state": "filtered", **{name: one[name] for name in told}} for one in filtered]


def find_filters(names: Sequence[str], side: Side) -> tuple[tuple[str, str], ...]:
    """(name, module:class) of those that may look at this side; none of them is imported.

    Raises:
        SettingsError: there is no such filter.
    """
    if not names:
        return ()
    from importlib.metadata import entry_points

    known = {one.name: one.value for one in entry_points(group=ENTRY_POINTS)}
    known |= {name: reference for name, (_, reference) in BUILT_IN.items()}
    if unknown := [name for name in names if name not in known]:
        there = ", ".join(sorted(known))
        raise SettingsError(f"DARKROOM_FILTERS: no filter is called {unknown[0]!r}, only {there}")
    wanted = [name for name in dict.fromkeys(names) if BUILT_IN.get(name, (side,))[0] == side]
    return tuple((name, known[name]) for name in wanted)


class Filters:
    """The filters of one side. Thread-safe; questions are answered one by one."""

    def __init__(self, settings: Settings, side: Side, models: Sequence[ModelSpec] = ()) -> None:
        """`models` are those whose images there will be.

        Raises:
            SettingsError: one of the filters does not exist.
        """
        self._references = find_filters(settings.filters, side)
        self._side: Side = side
        self._setup = Setup(settings.filter_words, tuple(models), settings.device)
        self._seconds = settings.filter_deadline.total_seconds()
        self._is_open = settings.filter_failures == "open"
        self._lock = threading.Lock()
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._names: tuple[str, ...] | None = None if self._references else ()
        """Those that look at this side; None: not known yet."""
        self._is_loaded = False
        self._load_until = 0.0
        self._not_before = 0.0
        _log.info("filters_set", side=side, names=[name for name, _ in self._references])

    @property
    def may_look(self) -> bool:
        """Whether there is a filter of this side, as far as is known."""
        return self._names != ()

    def start(self, gives_up: Callable[[], bool] = _never) -> None:
        """See that they run, rather than at the next question.

        Raises:
            FilterUnavailable: they cannot be loaded, and nothing may pass unseen.
        """
        if self._is_loaded and self._lock.locked():
            return  # They are at a question.
        passed = (FilterUnavailable,) if self._is_open else ()
        with contextlib.suppress(*passed), self._turn(gives_up):
            self._names_or_start(gives_up)

    def check(self, subject: Prompt | MadeImage, gives_up: Callable[[], bool] = _never) -> Findings:
        """Ask each until one refuses. `gives_up` ends the wait for others and for the start.

        Raises:
            FilterUnavailable: one has failed or did not answer, and nothing may pass unseen.
        """
        if not self.may_look:
            return NOTHING
        try:
            with self._turn(gives_up):
                return self._ask_all(subject, gives_up)
        except FilterUnavailable:
            if not self._is_open:
                raise
            return self.unchecked()

    def unchecked(self) -> Findings:
        """For what they did not see.

        Raises:
            FilterUnavailable: nothing may pass unseen.
        """
        if not self._is_open:
            raise FilterUnavailable("The filters did not respond.")
        names = self._names or [name for name, _ in self._references]
        return Findings(marks=tuple(Finding(name, NOT_CHECKED) for name in names))

    def close(self) -> None:
        """End the process, and with it the question that it may be at."""
        if (running := self._running) is not None:
            _end(running[0])
        with self._lock:
            self._kill()

    @contextlib.contextmanager
    def _turn(self, gives_up: Callable[[], bool]) -> Iterator[None]:
        while not self._lock.acquire(timeout=_SLICE_SECONDS):
            if gives_up():
                raise FilterUnavailable("The filters are busy.")
        try:
            yield
        finally:
            self._lock.release()

    def _ask_all(self, subject: Prompt | MadeImage, gives_up: Callable[[], bool]) -> Findings:
        marks: list[Finding] = []
        for name in self._names_or_start(gives_up):
            finding, refuses = self._ask(name, subject, gives_up)
            if finding is not None and refuses:
                return Findings(finding, tuple(marks))
            marks += [finding] if finding is not None else []
        return Findings(marks=tuple(marks))

    def _ask(
        self, name: str, subject: Prompt | MadeImage, gives_up: Callable[[], bool]
    ) -> tuple[Finding | None, bool]:
        """What one filter has against it, and whether it refuses."""
        began = time.monotonic()
        outcome, finding = "allow", None
        try:
            self._names_or_start(gives_up)  # one before it may have been killed
            answer = self._answer(name, subject)
            if isinstance(answer, Verdict):
                outcome, finding = answer.action, Finding(name, answer.reason)
            elif answer is not None:
                outcome = "failed"
                _log.error("filter_failed", filter=name, side=self._side, error=str(answer))
        except (TimeoutError, BlockingIOError):  # the second: it took no image
            outcome = "timed_out"
            _log.error("filter_timed_out", filter=name, side=self._side, seconds=self._seconds)
            self._kill()
        except FilterUnavailable as error:  # the process may continue to load
            outcome = "failed"
            _log.error("filter_not_asked", filter=name, side=self._side, reason=error.message)
        except (EOFError, OSError) as error:
            outcome = "failed"
            _log.error("filter_died", filter=name, side=self._side, error=type(error).__name__)
            self._kill()
        CHECKS.labels(name, self._side, outcome).observe(time.monotonic() - began)
        if outcome in ("failed", "timed_out"):
            if not self._is_open:
                raise FilterUnavailable(f"The filter {name} did not respond.")
            finding = Finding(name, NOT_CHECKED)
        return finding, outcome == "refuse"

    def _answer(self, name: str, subject: Prompt | MadeImage) -> object:
        assert self._running is not None  # noqa: S101 - it was just started
        connection = self._running[1]
        connection.send((name, subject))
        if not connection.poll(self._seconds):
            raise TimeoutError
        return connection.recv()

    def _names_or_start(self, gives_up: Callable[[], bool]) -> tuple[str, ...]:
        if self._names == ():
            return ()
        if self._running is not None and self._is_loaded:
            if not self._running[1].poll(0):
                return self._names or ()
            self._kill()  # Nothing was asked, so this is its end.
        if time.monotonic() < self._not_before:
            raise FilterUnavailable("The filters could not be loaded a moment ago.")
        try:
            answer = self._load(gives_up)
        except TimeoutError:
            answer = "it took too long"
        except (EOFError, OSError) as error:
            answer = type(error).__name__
        if not isinstance(answer, tuple):
            self._kill()
            self._not_before = time.monotonic() + _PAUSE_SECONDS
            _log.error("filters_not_loaded", side=self._side, reason=answer)
            raise FilterUnavailable("The filters cannot be loaded.")
        if self._names is None:
            show_zeros(CHECKS, answer, (self._side,), ("refuse", "failed", "timed_out"))
        self._names, self._is_loaded = answer, True
        if not answer:
            self._kill()  # they look at the other side only
        return answer

    def _load(self, gives_up: Callable[[], bool]) -> object:
        """What the process says when it has loaded them. It continues when nobody waits."""
        if self._running is None:
            self._running = self._start()
            self._load_until = time.monotonic() + _START_SECONDS
            self._running[1].send((self._side, self._references, self._setup))
        connection = self._running[1]
        while not connection.poll(_SLICE_SECONDS):
            if gives_up():
                raise FilterUnavailable("The filters are being loaded.")
            if time.monotonic() > self._load_until:
                raise TimeoutError
        return connection.recv()

    def _start(self) -> "tuple[subprocess.Popen[bytes], Connection]":
        from multiprocessing import Pipe

        ours, theirs = Pipe()
        with socket.socket(fileno=os.dup(ours.fileno())) as end:
            # An image is more than the socket holds, and the process may have been stopped.
            seconds = struct.pack("ll", max(1, int(self._seconds)), 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        with theirs:
            number = theirs.fileno()
            paths = dict.fromkeys(path for path in sys.path if path)
            process = subprocess.Popen(
                [sys.executable, "-c", _PROCESS, str(number), str(os.getpid())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        return process, ours

    def _kill(self) -> None:
        if self._running is None:
            return
        process, connection = self._running
        self._running, self._is_loaded = None, False
        _end(process)
        process.wait()
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """It, and the processes that filters have started."""
    if process.returncode is None:  # else the number may be another's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

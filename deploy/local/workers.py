"""The workers, forked by a process that has imported what they need (see `fork_server`)."""

import json
import os
import select
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace

from deploy.local.applications import Application
from deploy.local.home import Home
from deploy.local.host import ServerFailedError
from deploy.local.launch import adopting
from deploy.local.process import ChildProcess, Forked, Program, wait_for_answer

_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and WSL's for both
CAN_FORK = sys.platform == "linux" and not any(map(os.path.exists, _GPU_DRIVERS))
"""Only on Linux can a supervisor adopt, and macOS's libraries do not survive a fork. Neither does a
driver that one of the imports has opened."""

_ANSWER_SECONDS = 8.0
"""A fork takes milliseconds; below the 10 s in which the stack promises to be gone."""


class Libraries(Application):
    """The fork server. Only a worker's start needs it, so that is when a dead one is replaced."""

    start_seconds = 300.0  # what it imports and loads comes off a cold disk, too
    _socket: socket.socket
    _input: socket.socket
    _ready = False

    def __init__(
        self, home: Home, environment: Mapping[str, str], module: str = "worker.warm"
    ) -> None:
        """``environment`` is that of all forks. Starts nothing yet."""
        arguments = ["-m", "deploy.local.fork_server", module]
        read_by_imports = {
            "TQDM_DISABLE": "1",  # this and the next but one are a worker's own
            **environment,
            "DIFFUSERS_DISABLE_CUSTOM_CODE": "1",
            "OPENBLAS_NUM_THREADS": "1",  # it would start threads
        }
        super().__init__("libraries", arguments, home=home, environment=read_by_imports)

    def begin(self) -> ChildProcess:
        """Starts it, unless it runs; does not wait."""
        if self._child is None or not self._child.running:
            self._socket, self._input = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.settimeout(_ANSWER_SECONDS)
            self._ready = False
            with self._input:
                self._child = ChildProcess(self.program())
        return self._child

    def start(self, stop: threading.Event | None = None) -> None:
        wait_for_answer(self.begin(), self.answers, seconds=self.start_seconds, stop=stop)

    def program(self) -> Program:
        return replace(super().program(), input=self._input)

    def answers(self) -> bool:
        """Whether it has imported everything."""
        if not self._ready and select.select([self._socket], [], [], 0)[0]:
            self._ready = self._socket.recv(16) == b"ready"
        return self._ready

    def fork(self, program: Program) -> Forked:
        """Makes a process that runs this program, a child of this one.

        Raises:
            ServerFailedError: the server has ended, or does not answer and is ended.
        """
        order = {
            "name": program.name,
            "command": program.command[2:],  # what follows `python -m`
            "log": str(program.log),
            "parent": os.getpid(),
            "signal": program.stop_signal,
        }
        try:
            with adopting():
                self._socket.send(json.dumps(order).encode())
                answer = self._socket.recv(16)
        except OSError:
            answer = b""
        if not answer:
            self.kill()  # or its answer might come later, and be taken for that to another order
            reason = f"{self.name} ended; its log is {self._home.log(self.name)}"
            raise ServerFailedError(f"{program.name} cannot be started: {reason}")
        return Forked(int(answer))


class Worker(Application):
    """A worker process: forked where there are libraries, whose environment it then has, else
    started anew."""

    def __init__(
        self, role: str, home: Home, environment: Mapping[str, str], libraries: Libraries | None
    ) -> None:
        """``role`` is the argument of ``python -m worker``. Starts nothing yet."""
        arguments = ["-m", "worker", role]
        super().__init__(f"worker-{role}", arguments, home=home, environment=environment)
        self._libraries = libraries

    def start(self, stop: threading.Event | None = None) -> None:
        if self._libraries is not None and not self.running:
            self._libraries.start(stop)
        super().start(stop)

    def program(self) -> Program:
        if self._libraries is None:
            return super().program()
        return replace(super().program(), fork=self._libraries.fork)

"""Processes that have imported everything once and fork a ready one for each order.

A worker's imports take seconds of CPU, and the tests start and kill hundreds of them. The server
opens no connection and starts no thread of its own, so that its children are as good as fresh
ones: each runs `python -m MODULE ARGUMENTS` with its own environment, log and session, and is
killed when whoever ordered it is gone.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parents[1]

_LIBRARIES = {
    "light": (
        *("uvicorn.main", "uvicorn.loops.auto", "uvicorn.lifespan.on", "celery.apps.worker"),
        *("celery.concurrency.thread", "celery.worker.consumer", "celery.worker.strategy"),
        *("kombu.transport.redis", "boto3", "botocore.session", "psycopg", "worker.generate"),
        *(
            "worker.cpu",
            "darkroom.cli.app",
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
        ),
    ),
    "heavy": (
        *("torch", "sentence_transformers", "diffusers"),
        *("transformers.models.clip.modeling_clip", "transformers.models.bert.modeling_bert"),
        *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders"),
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    ),
}
_PACKAGES = {"light": ("shared", "api"), "heavy": ("worker",)}
"""A light server is enough for API processes, a heavy one has torch and serves all."""

_ADDRESS = "TESTS_FORK_SERVER_{}"
"""The variable in which a server's socket is handed to other processes of the same run."""


class ForkedProcess:
    """A child of a fork server, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, address: str, order: Mapping[str, Any]) -> None:
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(address)
        self._connection.sendall(json.dumps(order).encode() + b"\n")
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with self._lock:
            self._look(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        with self._lock:
            self._look(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self.returncode

    def _look(self, seconds: float | None) -> None:
        if self.returncode is not None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if not selector.select(seconds):
                return
        # Nothing but a number if the server itself was killed, and its children with it.
        self.returncode = int(self._answers.readline() or -signal.SIGKILL)
        self._answers.close()
        self._connection.close()

    def send_signal(self, which: int) -> None:
        """Send a signal if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, which)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fork(
    kind: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    *,
    errors: Path | None = None,
    folder: Path = PROJECT,
) -> ForkedProcess:
    """Run `python -m COMMAND` in a child of a server of this kind, its output in a file or two."""
    order = {
        "command": list(command),
        "environment": dict(environment),
        "output": str(output),
        "errors": str(errors or output),
        "folder": str(folder),
    }
    return ForkedProcess(start(kind), order)


_starting = threading.Lock()


def start(kind: str) -> str:
    """The address of a server that has imported this, which is started if there is none yet."""
    variable, heavy = (_ADDRESS.format(which.upper()) for which in (kind, "heavy"))
    with _starting:
        if heavy in os.environ:
            return os.environ[heavy]
        if variable not in os.environ:
            folder = Path(tempfile.mkdtemp(prefix="forks-"))
            os.environ[variable] = str(folder / "socket")
            _launch(kind, folder)
        return os.environ[variable]


def _launch(kind: str, folder: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / "socket"))
    listener.listen(128)  # orders may come while the server still imports
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", kind, str(listener.fileno())],
        cwd=PROJECT,
        env=_environment(),
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,  # Ctrl-C is for the tests, which end what they have started
    )
    listener.close()

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        (folder / "socket").unlink()
        folder.rmdir()

    atexit.register(end)


def _environment() -> dict[str, str]:
    """What libraries read when they are imported; the rest comes with each order."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    return {
        **clean,
        "OPENBLAS_NUM_THREADS": "1",  # it starts its threads at the import
        "DIFFUSERS_DISABLE_CUSTOM_CODE": "1",
        "TQDM_DISABLE": "1",
    }


# --- The server -----------------------------------------------------------------------------------


class _Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        self._owners: dict[socket.socket, int] = {}  # who ordered, and the process's descriptor

    def serve(self) -> dict[str, Any] | None:
        """Returns in each child, with its order; in the server, None at its end."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    if (order := self._take_order()) is not None:
                        return order
                elif key.fileobj is sys.stdin:  # whoever started the server is gone
                    for process in self._owners.values():
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                    return None
                elif isinstance(key.fileobj, socket.socket):  # whoever ordered it is gone
                    if key.fileobj not in self._owners:
                        continue  # Its process ended in the same moment, and was seen first.
                    self._selector.unregister(key.fileobj)
                    signal.pidfd_send_signal(self._owners[key.fileobj], signal.SIGKILL)
                else:
                    self._bury(*key.data)

    def _take_order(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb") as lines:
            line = lines.readline()
        if not line:
            connection.close()
            return None
        child = os.fork()
        if child == 0:
            self._let_go(connection)
            order: dict[str, Any] = json.loads(line)
            return order
        process = os.pidfd_open(child)
        with contextlib.suppress(OSError):  # Whoever ordered it is gone, which is seen at once.
            connection.sendall(f"{child}\n".encode())
        self._owners[connection] = process
        self._selector.register(connection, selectors.EVENT_READ)
        self._selector.register(process, selectors.EVENT_READ, (child, connection))
        return None

    def _let_go(self, connection: socket.socket) -> None:
        self._selector.close()
        self._listener.close()
        connection.close()
        for other, process in self._owners.items():
            other.close()
            os.close(process)

    def _bury(self, child: int, connection: socket.socket) -> None:
        _, status = os.waitpid(child, 0)
        process = self._owners.pop(connection)
        self._selector.unregister(process)
        os.close(process)
        with contextlib.suppress(KeyError):
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        connection.close()


def _become(order: dict[str, Any]) -> NoReturn:
    os.setsid()
    for descriptor, name in ((1, order["output"]), (2, order["errors"])):
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY  # it may be a test's terminal
        os.dup2(os.open(name, how, 0o644), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    added = order["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in added if folder and folder not in sys.path]
    # What a shell without job control starts with `&` ignores it, and so on down to here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)  # one that is stuck shows where
    sys.argv = order["command"]
    code: int = 0
    try:
        runpy.run_module(order["command"][0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    # As the interpreter ends, but without taking a gigabyte of modules apart.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def main(kind: str, listener: int) -> None:
    """Import, then serve until standard input ends."""
    for part in ("light", "heavy")[: 2 if kind == "heavy" else 1]:
        for module in _LIBRARIES[part]:
            importlib.import_module(module)
        for package in map(importlib.import_module, _PACKAGES[part]):
            for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                if not found.name.endswith("__main__"):
                    importlib.import_module(found.name)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    order = _Server(socket.socket(fileno=listener)).serve()
    if order is not None:
        _become(order)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

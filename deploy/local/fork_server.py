"""Imports a module once and forks programs that have it, which saves seconds and memory.

Run as ``python -m deploy.local.fork_server MODULE``, with a socket as its standard input. It calls
the module's `warm`, and then each message is an order, the answer the process id of the fork, by
then a child of the supervisor like any other. As long as `warm` opens no connection and starts no
thread, a fork is as good as a new process.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
from typing import Any

from deploy.local.launch import die_with_parent, name_process


def main() -> None:
    """Imports, says so, and forks until the supervisor is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how a fork has ended
    importlib.import_module(sys.argv[1]).warm()
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        print(f"{threads} threads run: forks have but one, and may hang", flush=True)
    gc.collect()
    gc.freeze()  # a collection would write to what is shared, and so copy it
    supervisor = socket.socket(fileno=os.dup(0))
    supervisor.send(b"ready")
    while order := supervisor.recv(65_536):
        if _fork(supervisor):
            _become(json.loads(order))
            return


def _fork(supervisor: socket.socket) -> bool:
    """True in the fork. It is its parent's orphan, which the supervisor adopts."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        between = os.getpid()
        try:
            child = os.fork()
        except OSError:
            os._exit(1)
        if child != 0:
            os.write(writing, str(child).encode())
            os._exit(0)
        for descriptor in (reading, writing, supervisor.detach()):
            os.close(descriptor)
        while os.getppid() == between:
            time.sleep(0.001)
        return True
    os.close(writing)
    os.waitpid(between, 0)
    answer = os.read(reading, 16)
    os.close(reading)
    if not answer:
        sys.exit("the kernel has no process or memory for another fork")
    supervisor.send(answer)
    return False


def _become(order: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    die_with_parent(order["parent"], order["signal"])
    name_process(order["name"])
    sys.argv = order["command"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""What the local stack needs of this machine: ports, accounts, waits and errors."""

import errno
import os
import pwd
import random
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path


class StackError(Exception):
    """The local stack cannot start or continue; the message says why and what to do about it."""


class HomeInUseError(StackError):
    """Another stack holds the lock of this home."""


class ForeignFolderError(StackError):
    """A data folder holds files that Darkroom did not make; nothing in it was touched."""


class PortTakenError(StackError):
    """A port that was asked for by name is used by another program."""


class ServerFailedError(StackError):
    """A server or a process of Darkroom ended, or did not answer in time."""


class StopRequestedError(Exception):
    """The user asked the stack to stop while it was still waiting for something."""


LOOPBACK = "127.0.0.1"
# Below every system's range for outgoing connections (Linux from 32768, macOS from 49152): a
# client that keeps dialling a stopped server's port there can end up connected to itself.
_CHOSEN_FROM = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` now.

    Raises:
        PortTakenError: this account may not use the port.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set it too; without it, closed connections look like a taken port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise PortTakenError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}") from error
    return True


def choose_port(exclude: Container[int] = ()) -> int:
    """A free loopback port, drawn at random so that neighbours seldom draw the same."""
    for port in random.sample(_CHOSEN_FROM, 200):
        if port not in exclude and is_free(port):
            return port
    raise PortTakenError("none of 200 ports between 20000 and 32000 is free on 127.0.0.1")


def demand_port(port: int, *, variable: str) -> int:
    """``port``, if it is free.

    Raises:
        PortTakenError: another program listens there; the message names ``variable``.
    """
    if not is_free(port):
        raise PortTakenError(
            f"port {port} is taken by another program; choose another with {variable}=<port>"
        )
    return port


def port_from_environment(variable: str) -> int | None:
    """The port named by an environment variable; None where it is not set.

    Raises:
        PortTakenError: the value is not a port number.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= 65_535:
        raise PortTakenError(f"{variable}={value} is not a port number between 1 and 65535")
    return int(value)


@dataclass(frozen=True)
class Account:
    """The user and group a child runs as, where that is not the supervisor's own account."""

    user: int
    group: int
    override: bool
    """Keeps the right to pass folders that are closed to the account (Linux)."""


def unprivileged_account(data: Path, programs: Path) -> Account | None:
    """Who Postgres runs as: None (ourselves) unless we are root.

    As root it is the owner of the data folder, or ``nobody`` for a new one. Where folders on the
    way are closed to that account, such as ``/root``, it keeps the one capability to pass them;
    their modes are not changed.

    Raises:
        StackError: no account will do.
    """
    if os.geteuid() != 0:
        return None
    try:
        owner = data.stat().st_uid if data.exists() else 0
        entry = pwd.getpwuid(owner) if owner != 0 else pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError(
            "Postgres does not run as root and there is no account to run it as; "
            "start the stack as an ordinary user"
        ) from error
    override = not all(_may_pass(path, entry.pw_uid) for path in (data.parent, programs))
    if override and sys.platform != "linux":
        raise StackError(
            f"Postgres does not run as root, and the account {entry.pw_name} may not enter "
            f"{data.parent} or {programs}; start the stack as an ordinary user"
        )
    return Account(entry.pw_uid, entry.pw_gid, override)


def _may_pass(path: Path, user: int) -> bool:
    """Whether ``user``, in no particular group, may search ``path`` and all folders above it."""
    for folder in (path, *path.parents):
        status = folder.stat()
        needed = stat.S_IXUSR if status.st_uid == user else stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    stop: threading.Event | None = None,
) -> None:
    """Returns when ``condition`` is true; it is asked 20 times a second.

    Raises:
        ServerFailedError: it was not true within ``seconds``; the message names ``what``.
        StopRequestedError: ``stop`` was set meanwhile.
    """
    deadline = time.monotonic() + seconds
    event = stop or threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailedError(f"{what} did not answer within {seconds:.0f} s")
        if event.wait(0.05):
            raise StopRequestedError

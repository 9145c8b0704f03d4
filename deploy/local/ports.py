"""Chooses loopback ports and says which setting moves one that is taken."""

import errno
import os
import random
import socket

from deploy.local.errors import PortTakenError

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


def choose_port(exclude: set[int] | None = None) -> int:
    """A free loopback port, drawn at random so that neighbours seldom draw the same."""
    for port in random.sample(_CHOSEN_FROM, 200):
        if port not in (exclude or set()) and is_free(port):
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

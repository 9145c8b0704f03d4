"""Two hosts: network namespaces, and a line between them that delays, loses or drops packets.

The servers stay where they are: this side's host is a gateway to them, whose sockets the proxies
listen on; all that workers on the other side send and receive goes over the line.

The line is a pair of TUN devices with a thread between them, rather than a veth pair under
`tc netem`, which not every kernel has. What it does to packets, TCP has to mend.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

HERE, THERE = "192.0.2.1", "192.0.2.2"
"""Addresses that documentation uses and no network does (RFC 5737)."""
_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """Why a second host cannot be made here."""
    if not _TUN.exists():
        return "no /dev/net/tun"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    made = subprocess.run(["ip", "netns", "add", _name("try")], capture_output=True, check=False)
    if made.returncode:
        return f"ip netns: {made.stderr.decode().strip()}"
    _ip("netns", "del", _name("try"))
    return None


def enter(namespace: str) -> None:
    """Move this thread, and those that it starts, to a host."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}", "rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


class TwoHosts:
    """A context manager: two namespaces and the line between them."""

    def __init__(self) -> None:
        self.here, self.there = _name("here"), _name("there")
        self.delay = 0.0
        """Seconds that a packet takes, in each direction."""
        self.loss = 0.0
        """The share of packets that is lost, in each direction."""
        self.partitioned = False
        """Nothing arrives."""
        self.carried = self.dropped = 0
        self._end, self._wake = os.pipe()
        self._ends: list[int] = []
        self._thread = threading.Thread(target=self._carry, name="line", daemon=True)

    def listen(self) -> socket.socket:
        """A socket that listens on this side's address; it can be used by any thread."""

        def make() -> socket.socket:
            enter(self.here)
            return socket.create_server((HERE, 0))

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(make).result()

    def __enter__(self) -> Self:
        try:
            for namespace, mine, other in ((self.here, HERE, THERE), (self.there, THERE, HERE)):
                _ip("netns", "add", namespace)
                device = f"{namespace}0"
                self._ends.append(_tun(device))
                _ip("link", "set", device, "netns", namespace)
                _ip("-n", namespace, "addr", "add", mine, "peer", other, "dev", device)
                for each in (device, "lo"):
                    _ip("-n", namespace, "link", "set", each, "up")
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake)
        self._thread.join(timeout=5)
        self._remove()

    def _remove(self) -> None:
        for end in self._ends:
            os.close(end)
        for namespace in (self.here, self.there):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _carry(self) -> None:
        """Packets wait in order of arrival until they are due."""
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        with selectors.DefaultSelector() as selector:
            for end, other in (self._ends, self._ends[::-1]):
                selector.register(end, selectors.EVENT_READ, other)
            selector.register(self._end, selectors.EVENT_READ)
            while True:
                pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
                for key, _ in selector.select(pause):
                    if key.data is None:
                        return
                    packet = os.read(key.fd, 65536)
                    if self.partitioned or random.random() < self.loss:
                        self.dropped += 1
                        continue
                    number += 1
                    due = time.monotonic() + self.delay
                    heapq.heappush(waiting, (due, number, key.data, packet))
                while waiting and waiting[0][0] <= time.monotonic():
                    _, _, end, packet = heapq.heappop(waiting)
                    self.carried += 1
                    with contextlib.suppress(OSError):  # a full queue loses it, as a switch would
                        os.write(end, packet)


def _tun(name: str) -> int:
    end = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _name(part: str) -> str:
    """Names of other runs on this machine differ; a device's has at most 15 characters."""
    return f"d{os.getpid() % 10**7}{part}"


def _ip(*arguments: Any) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)

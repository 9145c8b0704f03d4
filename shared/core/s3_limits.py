"""A limit on the time of a whole call to S3, its retry and its answer's body included.

botocore limits connecting and each read, so that a trickle of bytes can hold a call for ever. Here
each call notes the socket that it uses, and a thread shuts the sockets of those that are late.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.exceptions import BotoCoreError

_WATCH_SECONDS = 0.5


class TooSlow(BotoCoreError):  # type: ignore[misc]
    """A call took longer than it may, its retry included."""

    fmt = "S3 did not finish within {seconds} s"


class _Call:
    """One call to S3 and the socket it waits on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.socket: socket.socket | None = None
        self.late = False
        self.renew()

    def renew(self) -> None:
        """Restart its time."""
        self.ends = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds; at least some, since a socket takes no less."""
        return max(0.1, self.ends - time.monotonic())

    def cut(self) -> None:
        """Whoever reads or writes fails at once; under TLS, too."""
        self.late = True
        if self.socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class _Watch:
    """Cuts calls whose time is up: timeouts of sockets end silence, not a trickle of bytes."""

    def __init__(self) -> None:
        self._calls: set[_Call] = set()
        self._changed = threading.Condition()
        self._idle = True
        self._thread: threading.Thread | None = None

    def add(self, call: _Call) -> None:
        with self._changed:
            self._calls.add(call)
            if self._thread is None or not self._thread.is_alive():  # nor is it after a fork
                self._thread = threading.Thread(target=self._run, name="s3-watch", daemon=True)
                self._thread.start()
            elif self._idle:
                self._changed.notify()

    def remove(self, call: _Call) -> None:
        with self._changed:
            self._calls.discard(call)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    self._idle = True
                    self._changed.wait()
                self._idle = False
                now = time.monotonic()
                for call in self._calls:
                    if call.ends <= now:
                        call.cut()
            time.sleep(_WATCH_SECONDS)


_watch = _Watch()
_here = threading.local()


@contextmanager
def limited(seconds: float) -> Iterator[_Call]:
    """Each operation within may take this long, its retry and its answer's body included.

    Raises:
        TooSlow: it took longer.
    """
    call = _here.call = _Call(seconds)
    _watch.add(call)
    try:
        yield call
    finally:
        _watch.remove(call)
        _here.call = None
    if call.late:  # an answer without a length ends where it is cut
        raise TooSlow(seconds=seconds)


def _begin(**_: Any) -> None:
    _current().renew()


def _refuse_when_late(**_: Any) -> None:
    call = _current()
    if call.late or call.ends <= time.monotonic():
        raise TooSlow(seconds=call.seconds)


def _current() -> _Call:
    call: _Call = _here.call
    return call


class _Watched:
    """A connection that shows its socket to the call that uses it."""

    sock: Any
    connect: Callable[[], None]

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        call = _current()
        call.socket = self.sock
        # A body is sent in one piece, under the timeout for connecting if nothing else is said.
        self.sock.settimeout(call.left())
        super().send(data)  # type: ignore[misc]


class _WatchedHTTP(_Watched, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _WatchedHTTPS(_Watched, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _WatchedHTTPPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _WatchedHTTP


class _WatchedHTTPSPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _WatchedHTTPS


def limit_client(client: Any) -> None:
    """Put boto3's client of S3 under the limits that `limited` sets."""
    # botocore has no setting for it: the pools' connections must show their sockets.
    client._endpoint.http_session._pool_classes_by_scheme.update(
        http=_WatchedHTTPPool, https=_WatchedHTTPSPool
    )
    client.meta.events.register("before-call.s3", _begin)
    client.meta.events.register("before-send.s3", _refuse_when_late)

"""A TCP relay in front of a server, which can be cut or made to hang, the server untouched."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from enum import Enum
from urllib.parse import urlsplit, urlunsplit


class Mode(Enum):
    """What the relay does with connections, old and new."""

    OPEN = "open"
    REFUSE = "refuse"
    """Nobody listens; old connections are closed."""
    HANG = "hang"
    """Connections are made, and nothing comes back."""


class Relay:
    """Relays one port to another until told otherwise."""

    def __init__(self, url: str) -> None:
        """`url` of the server to stand in front of."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        userinfo, at, _ = parts.netloc.rpartition("@")
        self.url = urlunsplit(parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{self.port}"))
        self.passed = 0
        """Pieces of data so far, both ways: about four for a statement."""
        self._mode = Mode.OPEN
        self._lost: tuple[bytes, bytes] | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._accept_in_background()

    @contextlib.contextmanager
    def set_to(self, mode: Mode) -> Iterator[None]:
        """Be in another mode for a while."""
        self._change(mode)
        try:
            yield
        finally:
            self._change(Mode.OPEN)

    @contextlib.contextmanager
    def lose_the_answer(self, to: bytes, after: bytes = b"") -> Iterator[None]:
        """For a while, let what contains `to` pass, and cut its connection when the answer comes;
        only on connections on which `after` has passed before."""
        self._lost = to, after
        try:
            yield
        finally:
            self._lost = None

    def close(self) -> None:
        """Stop for good."""
        self._change(Mode.REFUSE)

    def _change(self, mode: Mode) -> None:
        before = self._mode
        if before is Mode.HANG:
            self._cut()  # What hung is worth nothing, and must not come to life for a moment.
        self._mode = mode
        if mode is Mode.REFUSE:
            self._listener.close()
            self._acceptor.join()  # Until it is out of accept() the port stays taken.
            self._cut()
        elif before is Mode.REFUSE:
            self._listener = self._listen(self.port)
            self._accept_in_background()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        listener.settimeout(0.1)
        return listener

    def _accept_in_background(self) -> None:
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._acceptor.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with self._lock:
                self._open.add(client)  # here, so that none is passed over when all are cut
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            with self._lock:
                self._open.discard(client)
            client.close()
            return
        with self._lock:
            self._open.add(server)
        with contextlib.suppress(OSError, ValueError):
            self._pump(client, server)
        for end in (client, server):
            with self._lock:
                self._open.discard(end)
            end.close()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        is_armed = is_last = False  # see `lose_the_answer`
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select(0.1):
                    if self._mode is Mode.HANG:
                        threading.Event().wait(0.05)
                        continue
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    data = source.recv(65536)
                    if not data or (is_last and source is server):
                        return
                    if self._lost and source is client:
                        to, after = self._lost
                        is_armed = is_armed or after in data
                        is_last = is_last or (is_armed and to in data)
                    key.data.sendall(data)
                    self.passed += 1
                if client.fileno() < 0 or server.fileno() < 0:
                    return

    def _cut(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

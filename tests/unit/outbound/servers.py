"""Real loopback servers for the tests: scripted peers, a canary, certificates, a dial recorder."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Script = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A TCP server that plays `script` on each connection and remembers what it was sent."""

    def __init__(self, script: Script, host: str = "127.0.0.1", port: int = 0) -> None:
        self._script = script
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.broken = threading.Event()
        """Set when the script could not go on because the client had gone."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def _play(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._script(connection)
            except OSError:
                self.broken.set()

    def close(self) -> None:
        # Wakes the accept, which closing alone does not do on Linux.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def peer(script: Script, host: str = "127.0.0.1", port: int = 0) -> Iterator[Peer]:
    server = Peer(script, host, port)
    try:
        yield server
    finally:
        server.close()


def read_request(connection: socket.socket) -> bytes:
    """One request: its header, and as much body as Content-Length says."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            raise OSError("the client left")
        data += part
    head, body = data.split(b"\r\n\r\n", 1)
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answering(response: bytes, requests: list[bytes] | None = None) -> Script:
    """A script that reads one request, notes it, and answers `response`."""

    def script(connection: socket.socket) -> None:
        request = read_request(connection)
        if requests is not None:
            requests.append(request)
        connection.sendall(response)

    return script


class Dials:
    """Every address that this process tries to connect to, from the interpreter's audit events."""

    _recorder: "Dials | None" = None
    _hooked = False

    def __init__(self) -> None:
        self.addresses: list[Any] = []

    @classmethod
    def _hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and cls._recorder is not None:
            cls._recorder.addresses.append(arguments[1])

    def __enter__(self) -> "Dials":
        if not Dials._hooked:  # An audit hook stays for the life of the process.
            sys.addaudithook(Dials._hook)
            Dials._hooked = True
        Dials._recorder = self
        return self

    def __exit__(self, *_: object) -> None:
        Dials._recorder = None


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
        self._certificate = self._sign(self._name, self._key.public_key(), None, days=30)

    def trusting(self) -> ssl.SSLContext:
        """What a client uses who trusts this authority and nobody else."""
        pem = self._certificate.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=pem)

    def server(self, host: str, *, days: int = 30) -> ssl.SSLContext:
        """What a server uses whose certificate is for `host`, a name or an address."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test server")])
        certificate = self._sign(name, key.public_key(), host, days=days)
        path = self._folder / f"{host}{days}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None, days: int
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=60))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if host is not None:
            try:
                subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                subject = x509.DNSName(host)
            builder = builder.add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def over_tls(context: ssl.SSLContext, script: Script) -> Script:
    """`script` behind a TLS handshake."""

    def secured(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as stream:
            script(stream)

    return secured

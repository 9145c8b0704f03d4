"""Exchanges that are allowed: with honest servers, broken ones, and ones that waste our time."""

import gzip
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_network
from types import SimpleNamespace

import pytest

from shared.core.outbound.addresses import LOOPBACK, IPAddress, OutboundPolicy
from shared.core.outbound.client import GuardedClient
from shared.core.outbound.url import (
    AddressNotAllowed,
    ConnectionFailed,
    DeadlineExceeded,
    OutboundError,
    ResponseInvalid,
    TlsFailed,
    UnresolvableHost,
)
from tests.unit.outbound.servers import (
    OK,
    Authority,
    Dials,
    answering,
    over_tls,
    peer,
    read_request,
)

LOCAL = OutboundPolicy(allow_http=True, allowed_networks=LOOPBACK)
NAME = "hooks.example.test"


def at_loopback(host: str) -> list[IPAddress]:
    if host != NAME:
        raise OSError(f"no address for {host}")
    return [IPv4Address("127.0.0.1")]


@pytest.fixture
def client() -> GuardedClient:
    return GuardedClient(LOCAL, resolver=at_loopback)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def test_a_request_and_its_answer(client: GuardedClient) -> None:
    requests: list[bytes] = []
    answer = b"HTTP/1.1 202 Accepted\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello"
    with peer(answering(answer, requests)) as server:
        response = client.send(
            "POST",
            f"http://{NAME}:{server.port}/hook?a=1",
            {"content-type": "application/json", "webhook-id": "msg_1"},
            b'{"x": 1}',
        )
    assert (response.status, response.body, response.truncated) == (202, b"hello", False)
    assert response.headers == {"x-a": "1, 2", "content-length": "5"}
    assert response.elapsed_s > 0

    head, body = requests[0].split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook?a=1 HTTP/1.1"
    assert sorted(line.lower() for line in lines[1:]) == [
        "accept-encoding: identity", "connection: close", "content-length: 8",
        "content-type: application/json", f"host: {NAME}:{server.port}", "user-agent: darkroom",
        "webhook-id: msg_1",
    ]  # fmt: skip
    assert body == b'{"x": 1}'


@pytest.mark.skipif(sys.platform == "darwin", reason="has one loopback address only")
def test_ipv6_loopback_is_reached_where_the_policy_lists_it() -> None:
    with peer(answering(OK), "::1") as server:
        answer = GuardedClient(LOCAL).send("GET", f"http://[::1]:{server.port}/")
        assert (answer.status, answer.body) == (200, b"ok")


def test_a_name_is_resolved_once_and_the_address_judged_is_dialled() -> None:
    """DNS rebinding: the second answer would lead to the canary. Nobody asks for it."""
    answers = iter([IPv4Address("127.0.0.2"), IPv4Address("127.0.0.1")])
    asked: list[str] = []

    def rebinding(host: str) -> list[IPAddress]:
        asked.append(host)
        return [next(answers)]

    policy = OutboundPolicy(allow_http=True, allowed_networks=(ip_network("127.0.0.2/32"),))
    client = GuardedClient(policy, resolver=rebinding)
    with (
        # In this order: of a port that was free on 127.0.0.2, another test may have 127.0.0.1's.
        peer(answering(OK)) as canary,
        peer(answering(OK), host="127.0.0.2", port=canary.port) as server,
        Dials() as dials,
    ):
        url = f"http://rebind.example:{server.port}/"
        assert client.send("GET", url).status == 200
        assert asked == ["rebind.example"]
        with pytest.raises(AddressNotAllowed):  # And the next exchange is judged anew.
            client.send("GET", url)
        assert dials.addresses == [("127.0.0.2", server.port)]
        assert (server.accepted, canary.accepted) == (1, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers(client: GuardedClient, status: int) -> None:
    with peer(answering(OK)) as canary:
        location = f"http://127.0.0.1:{canary.port}/"
        answer = f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        with peer(answering(answer.encode())) as server:
            response = client.send("GET", f"http://{NAME}:{server.port}/")
        assert (response.status, response.headers["location"]) == (status, location)
        assert canary.accepted == 0


def test_proxies_in_the_environment_are_not_used(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with peer(answering(OK)) as proxy, peer(answering(OK)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert client.send("GET", f"http://{NAME}:{server.port}/").status == 200
        assert (proxy.accepted, server.accepted) == (0, 1)


def test_the_name_goes_into_the_handshake(authority: Authority) -> None:
    seen: list[str | None] = []
    context = authority.server(NAME)
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    requests: list[bytes] = []
    with peer(over_tls(context, answering(OK, requests))) as server:
        client = GuardedClient(LOCAL, resolver=at_loopback, ssl_context=authority.trusting())
        assert client.send("GET", f"https://{NAME}:{server.port}/").body == b"ok"
    assert seen == [NAME]
    assert f"host: {NAME}:{server.port}".encode() in requests[0].lower()


def test_a_certificate_may_be_for_an_address(authority: Authority) -> None:
    with peer(over_tls(authority.server("127.0.0.1"), answering(OK))) as server:
        client = GuardedClient(LOCAL, ssl_context=authority.trusting())
        assert client.send("GET", f"https://127.0.0.1:{server.port}/").status == 200


def test_certificates_that_are_not_to_be_trusted(authority: Authority) -> None:
    trusting = GuardedClient(LOCAL, resolver=at_loopback, ssl_context=authority.trusting())
    as_deployed = GuardedClient(LOCAL, resolver=at_loopback)
    requests: list[bytes] = []
    for client, context in [
        (as_deployed, authority.server(NAME)),  # signed by nobody we know
        (trusting, authority.server("other.example.test")),
        (trusting, authority.server(NAME, days=-1)),  # expired
    ]:
        with (
            peer(over_tls(context, answering(OK, requests))) as server,
            pytest.raises(TlsFailed, match="certificate is not trusted"),
        ):
            client.send("POST", f"https://{NAME}:{server.port}/", content=b"secret")
    assert requests == []


def test_https_to_a_server_without_tls(client: GuardedClient) -> None:
    with peer(lambda connection: connection.sendall(OK)) as server, pytest.raises(TlsFailed):
        client.send("GET", f"https://{NAME}:{server.port}/")


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"", b"H"),
        (HEAD, b"X-Drip: 1\r\n"),
        (HEAD + b"Content-Length: 99999\r\n\r\n", b"x"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
)
def test_a_slow_drip_is_cut(
    client: GuardedClient, head: bytes, part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes long before any timeout per read; the whole would take hours.

    They are hours of a clock that goes on with each part: a deadline of our time that is short
    enough for a test may pass before there is a connection.
    """
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr("shared.core.outbound.connector.time", clock)

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        for _ in range(4000):
            connection.sendall(part)
            passed[0] += 10
            threading.Event().wait(0.02)

    with peer(script) as server:
        with pytest.raises(DeadlineExceeded):
            client.send("GET", f"http://{NAME}:{server.port}/", deadline_s=60)
        assert server.broken.wait(60)


def test_silence_is_cut_wherever_it_falls(client: GuardedClient) -> None:
    silent = threading.Event()

    def says_nothing(_: socket.socket) -> None:
        silent.wait(20)

    with peer(says_nothing) as server:
        for scheme in ("http", "https"):
            with pytest.raises(DeadlineExceeded):
                client.send("GET", f"{scheme}://{NAME}:{server.port}/", deadline_s=0.3)
        with pytest.raises(DeadlineExceeded):  # It takes none of the request's body.
            client.send(
                "POST", f"http://{NAME}:{server.port}/", content=bytes(50_000_000), deadline_s=0.3
            )
    silent.set()


def test_a_dns_that_does_not_answer_is_cut() -> None:
    release = threading.Event()

    def silent_dns(_: str) -> list[IPAddress]:
        release.wait(20)
        return []

    with pytest.raises(DeadlineExceeded):
        GuardedClient(LOCAL, resolver=silent_dns).send(
            "GET", "http://slow.example/", deadline_s=0.2
        )
    release.set()


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 999999999999\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"],
)
def test_no_more_of_a_body_is_read_than_asked_for(client: GuardedClient, head: bytes) -> None:
    part = b"4000\r\n" + b"x" * 0x4000 + b"\r\n" if b"chunked" in head else b"x" * 0x4000

    def endless(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(HEAD + head)
        while True:
            connection.sendall(part)

    with peer(endless) as server:
        response = client.send("GET", f"http://{NAME}:{server.port}/", max_bytes=100_000)
        assert (response.body, response.truncated) == (b"x" * 100_000, True)
        assert server.broken.wait(60)


def test_a_body_of_exactly_the_limit_is_whole(client: GuardedClient) -> None:
    with peer(answering(HEAD + b"Content-Length: 4\r\n\r\nabcd")) as server:
        url = f"http://{NAME}:{server.port}/"
        assert client.send("GET", url, max_bytes=4).truncated is False
        assert client.send("GET", url, max_bytes=3).body == b"abc"
        assert client.send("GET", url, max_bytes=0).truncated is True


def test_nothing_is_unpacked(client: GuardedClient) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    answer = HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode() + bomb
    with peer(answering(answer)) as server:
        assert client.send("GET", f"http://{NAME}:{server.port}/").body == bomb


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
        HEAD + b"X-Many: 1\r\n" * 100_000 + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 50_000,
        b"HTTP/1.1 " + b"9" * 100_000,
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/9.9 what\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_an_answer_that_is_no_http_or_too_long_a_header(
    client: GuardedClient, answer: bytes
) -> None:
    def script(connection: socket.socket) -> None:
        answering(answer)(connection)
        connection.recv(1)  # Stay until the client has seen enough.

    with peer(script) as server, pytest.raises(ResponseInvalid):
        client.send("GET", f"http://{NAME}:{server.port}/")


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("said", [b"", b"HT", HEAD, HEAD + b"Content-Length: 9\r\n\r\nabc"])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_a_connection_that_breaks(client: GuardedClient, said: bytes, end: object) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(said)
        end(connection)  # type: ignore[operator]

    with peer(script) as server, pytest.raises(ConnectionFailed):
        client.send("GET", f"http://{NAME}:{server.port}/")


def test_nobody_listens(client: GuardedClient) -> None:
    with socket.socket() as bound:  # Bound, not listening: the port is refused and nobody's.
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailed):
            client.send("GET", f"http://{NAME}:{bound.getsockname()[1]}/")


def test_the_next_address_is_tried() -> None:
    both = [IPv4Address("127.0.0.1"), IPv4Address("127.0.0.1")]
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with Dials() as dials, pytest.raises(ConnectionFailed):
            GuardedClient(LOCAL, resolver=lambda _: both).send(
                "GET", f"http://{NAME}:{bound.getsockname()[1]}/"
            )
        assert len(dials.addresses) == 2


@pytest.mark.parametrize("answer", [OSError("NXDOMAIN"), UnicodeError("label too long"), []])
def test_a_name_without_an_address(answer: Exception | list[IPAddress]) -> None:
    def resolver(_: str) -> list[IPAddress]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(UnresolvableHost):
        GuardedClient(LOCAL, resolver=resolver).send("GET", "https://gone.example/")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "other"}, {"content-length": "1"}, {"Transfer-Encoding": "chunked"},
     {"x": "a\r\nHost: evil"}, {"x\r\ny": "a"}, {"": "x"}],
)  # fmt: skip
def test_headers_cannot_change_what_is_sent(client: GuardedClient, headers: dict[str, str]) -> None:
    requests: list[bytes] = []
    with peer(answering(OK, requests)) as server, pytest.raises(ValueError):  # noqa: PT011
        client.send("GET", f"http://{NAME}:{server.port}/", headers)
    assert requests == []


def test_errors_do_not_name_what_is_behind_a_name(client: GuardedClient) -> None:
    hidden = GuardedClient(OutboundPolicy(), resolver=lambda _: [IPv4Address("10.1.2.3")])
    with pytest.raises(OutboundError) as caught:
        hidden.send("GET", "https://intranet.example/")
    assert "10.1.2.3" not in str(caught.value)


def test_threads_share_a_client(authority: Authority) -> None:
    client = GuardedClient(LOCAL, resolver=at_loopback, ssl_context=authority.trusting())

    def echo(connection: socket.socket) -> None:
        body = read_request(connection).split(b"\r\n\r\n")[1]
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with peer(over_tls(authority.server(NAME), echo)) as server, ThreadPoolExecutor(8) as pool:
        bodies = [str(number).encode() * 100 for number in range(40)]
        url = f"https://{NAME}:{server.port}/"
        answers = pool.map(lambda body: client.send("POST", url, content=body).body, bodies)
        assert list(answers) == bodies

"""Who may talk to the playground, which holds a key and asks nobody who they are."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.processes import Process, free_port, wait_until


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a playground that may be reached as play.example too."""
    chosen = free_port()
    nowhere = {"DARKROOM_URL": "http://127.0.0.1:1", "DARKROOM_API_KEY": "drk_none"}
    arguments = ["-m", "darkroom.playground", f"--port={chosen}", "--host=play.example"]
    log: Path = tmp_path_factory.mktemp("playground") / "log"
    process = Process(nowhere, arguments, log)
    process.start()

    def answers() -> bool:
        assert process.child.poll() is None, process.tail()
        try:
            return httpx2.get(f"http://127.0.0.1:{chosen}/_stcore/health").text == "ok"
        except httpx2.TransportError:
            return False

    try:
        wait_until(answers, 90, "the playground")
        yield chosen
    finally:
        process.stop()


def open_websocket(port: int, host: str) -> str:
    """The first line of the answer to a page of this host that asks for the page's socket."""
    asked = (
        "GET /_stcore/stream HTTP/1.1\r\n"
        f"Host: {host}\r\nOrigin: http://{host}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(asked.encode())
        return connection.makefile("rb").readline().decode()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "play.example"])
def test_a_page_of_its_own_names_is_served(port: int, host: str) -> None:
    assert " 101 " in open_websocket(port, f"{host}:{port}")


def test_a_page_of_another_name_that_leads_here_is_refused(port: int) -> None:
    assert " 403 " in open_websocket(port, f"rebound.example:{port}")


def test_no_other_interface_listens(port: int) -> None:
    with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


def test_no_other_site_may_frame_it_or_bring_scripts_into_it(port: int) -> None:
    for path in ("/", "/_stcore/health"):
        headers = httpx2.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=60).headers
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'self'" in policy

"""Ports: what the user asked for is kept or refused, the rest moves out of the way."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.errors import PortTakenError
from deploy.local.ports import choose_port, is_free, port_from_environment
from deploy.local.servers import EmbeddedServers


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", choose_port())) as other:
        yield other.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_named(
    home: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_REDIS_PORT", str(taken))
    with pytest.raises(
        PortTakenError, match=f"port {taken} is taken .* DARKROOM_REDIS_PORT=<port>"
    ):
        EmbeddedServers(home, default_ports=True)
    monkeypatch.delenv("DARKROOM_REDIS_PORT")
    EmbeddedServers(home).close()  # the refusal let go of the lock


def test_a_port_that_was_asked_for_is_used_and_remembered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = choose_port()
    monkeypatch.setenv("DARKROOM_S3_PORT", str(wanted))
    first = EmbeddedServers(home, default_ports=True)
    first.close()
    monkeypatch.delenv("DARKROOM_S3_PORT")
    second = EmbeddedServers(home, default_ports=True)
    second.close()
    assert [first.s3.port, second.s3.port] == [wanted, wanted]


def test_a_remembered_port_that_is_taken_meanwhile_is_left_to_its_owner(home: Path) -> None:
    first = EmbeddedServers(home)
    first.close()
    with socket.create_server(("127.0.0.1", first.redis.port)):
        second = EmbeddedServers(home)
        second.close()
    assert second.redis.port != first.redis.port
    assert second.s3.port == first.s3.port


@pytest.mark.parametrize("value", ["http", "0", "65536", "-1", "80.5"])
def test_what_is_no_port_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_PORT", value)
    with pytest.raises(PortTakenError, match="is not a port number between 1 and 65535"):
        port_from_environment("DARKROOM_PORT")


def test_free_and_taken_are_told_apart(taken: int) -> None:
    assert not is_free(taken)
    assert is_free(choose_port())

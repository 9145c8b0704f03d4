"""The local receiver: what it takes, what it refuses, what it drops."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from darkroom.cli.receiver import Receiver


def verify(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    if headers.get("webhook-signature") != "right":
        raise ValueError("not signed")
    found: dict[str, Any] = json.loads(body)
    return found


def post(receiver: Receiver, event_id: str, signature: str = "right") -> int:
    headers = {"Webhook-Signature": signature}
    answer = httpx2.post(receiver.url, json={"id": event_id}, headers=headers, timeout=60)
    return answer.status_code


def test_signed_events_are_taken_once() -> None:
    with Receiver(0) as receiver:
        receiver.trust(verify)
        assert [post(receiver, "evt_1"), post(receiver, "evt_1"), post(receiver, "evt_2")] == [
            204
        ] * 3
        arrived = [receiver.arrivals.get_nowait() for _ in range(3)]
    assert [(each.event or {})["id"] for each in arrived] == ["evt_1", "evt_1", "evt_2"]
    assert [each.is_repeat for each in arrived] == [False, True, False]


def test_what_is_not_signed_is_refused() -> None:
    with Receiver(0) as receiver:
        receiver.trust(verify)
        assert post(receiver, "evt_1", "wrong") == 400
        refused = receiver.arrivals.get_nowait()
    assert (refused.event, refused.problem) == (None, "not signed")


def test_before_the_secret_is_known_nothing_is_accepted() -> None:
    with Receiver(0) as receiver:
        assert post(receiver, "evt_1") == 503
        assert receiver.arrivals.empty()


@pytest.mark.parametrize("length", ["-1", "x", "", str(1 << 30)])
def test_a_body_of_no_or_absurd_length_is_not_read(length: str) -> None:
    with Receiver(0) as receiver:
        receiver.trust(verify)
        address = receiver.url.removeprefix("http://").rstrip("/").split(":")
        answer = raw(address[0], int(address[1]), f"Content-Length: {length}")
    assert answer.startswith("HTTP/1.0 413")


def raw(host: str, port: int, header: str) -> str:
    import socket

    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        return connection.recv(200).decode()

"""What the playground keeps in memory, and for whom."""

import time

import pytest

import darkroom
from darkroom.playground import connection
from tests.processes import ApiProcess
from tests.unit.playground.conftest import Open


def test_a_wrong_key_gets_no_client(
    open_page: Open, api: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_PLAYGROUND_ASKS_FOR_KEY", "1")
    state = {connection.KEY: api.key}
    monkeypatch.setattr("streamlit.session_state", state)
    connected = connection.connect()
    state[connection.KEY] = "drk_wrong"
    for _ in range(2):
        with pytest.raises(darkroom.errors.AuthenticationError):
            connection.connect()
    state[connection.KEY] = api.key
    assert connection.connect() is connected


def test_images_are_soon_asked_for_again(
    open_page: Open, client: darkroom.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0
    monkeypatch.setattr(
        "streamlit.runtime.caching.cache_utils.TTLCACHE_TIMER", lambda: time.monotonic() + later
    )
    (made,) = client.generate("a hat", steps=2)
    for load in (connection.thumbnail, connection.image_file):
        assert load(made.id)
    client.images.delete(made)
    later = 300.0
    for load in (connection.thumbnail, connection.image_file):
        with pytest.raises(darkroom.errors.NotFoundError):
            load(made.id)

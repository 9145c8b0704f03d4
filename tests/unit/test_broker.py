"""What Celery's transport does where Redis goes."""

from types import SimpleNamespace

import pytest
from kombu.transport.redis import SentinelTransport, Transport

from shared.core.broker import REDIS_AWAY


@pytest.mark.parametrize("transport", [Transport, SentinelTransport])
def test_a_connection_that_is_closed_is_told_as_one_that_is_lost(transport: type) -> None:
    """The consumer of a worker outlives those; an AttributeError would end it."""
    channel = object.__new__(transport.Channel)  # type: ignore[attr-defined]
    channel.connection = SimpleNamespace(client=None)
    with pytest.raises(REDIS_AWAY):
        channel._connparams()

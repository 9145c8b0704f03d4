"""The API of tests in which no server is away: Postgres, Redis and CPU workers may be slow.

A request gives Redis 0.2 s, the vector of a query and a connection to Postgres 2 s; then it answers
503, or does without. Where all tests share two cores, a server that is well stands still for as
long. What a user is promised is tested where it is the subject, in
`tests/integration/api/test_outages.py`.
"""

from collections.abc import Callable

from fastapi import FastAPI
from redis.asyncio import Redis

from api import app
from api.core import publisher
from api.search import embedding
from shared.core import database
from shared.core.settings import Settings

_SECONDS = 30.0

_open_redis = app._redis


def create_app() -> FastAPI:
    """What uvicorn serves in place of `api.app:create_app`."""
    be_patient(setattr)
    database._CONNECT_ARGS["connect_timeout"] = int(_SECONDS)
    return app.create_app()


def be_patient(set_attribute: Callable[[object, str, object], None]) -> None:
    """Give Redis and CPU workers more time in this process."""
    set_attribute(publisher, "_CALL_TIMEOUT", _SECONDS)
    set_attribute(embedding, "REPLY_TIMEOUT", _SECONDS)
    set_attribute(app, "_redis", _redis)


def _redis(settings: Settings, socket_timeout: float, connections: int) -> Redis:
    return _open_redis(settings, 2 * _SECONDS, connections)

"""The API of tests that wait for what it does every few seconds: it does it sooner.

How often it looks is what it costs at rest, and no part of what these tests are about.
"""

from fastapi import FastAPI

from api import app
from api.core import connection, live_workers, principal
from api.jobs import followers
from tests import patient_api

LINGER_SECONDS = 1.0
"""How long a body may come after its answer."""


def create_app() -> FastAPI:
    """What uvicorn serves in place of `api.app:create_app`."""
    _be_quick()
    return app.create_app()


def create_patient_app() -> FastAPI:
    """The same in place of `tests.patient_api:create_app`."""
    _be_quick()
    return patient_api.create_app()


def _be_quick() -> None:
    connection._LINGER_SECONDS = LINGER_SECONDS
    live_workers._FRESH_SECONDS = 0.5
    principal._CACHE_SECONDS = 1.0
    followers._DATABASE_SECONDS = followers._DATABASE_SECONDS_ALONE = 0.5
    followers._RETRY_SECONDS = 0.5

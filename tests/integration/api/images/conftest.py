"""Unlike beside: the API whose model `sim` a worker serves."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.processes import ApiProcess, WorkerProcess


@pytest.fixture(scope="session")
def http(api: ApiProcess, generate_worker: WorkerProcess) -> httpx2.Client:
    """A client with the key of the tenant `tests`."""
    return api.http


@pytest.fixture
def stranger(api: ApiProcess, other_api_key: str) -> Iterator[httpx2.Client]:
    """A client of another tenant."""
    with api.client(other_api_key) as client:
        yield client

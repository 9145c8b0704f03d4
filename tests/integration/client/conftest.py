"""Clients of the running system, blocking and not."""

from collections.abc import Callable, Iterator

import pytest

from darkroom import AsyncClient, Client, EmbeddingUnavailable
from tests.conftest import MakeKey
from tests.processes import ApiProcess, WorkerProcess, wait_until


@pytest.fixture(scope="session")
def key(make_key: MakeKey) -> str:
    """A key of a tenant that only the tests of the client use."""
    return make_key("clients")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a batch looks ten times a second."""
    for module in ("darkroom._sync.batches", "darkroom._async.batches"):
        monkeypatch.setattr(f"{module}._POLL_SECONDS", 0.1)


@pytest.fixture
def client(api: ApiProcess, generate_worker: WorkerProcess, key: str) -> Iterator[Client]:
    """A blocking client of a system that makes images on a simulated GPU."""
    with Client(api.url, key) as opened:
        yield opened


@pytest.fixture
def async_client(
    api: ApiProcess, generate_worker: WorkerProcess, key: str
) -> Callable[[], AsyncClient]:
    """Opens a client of the same system inside of an event loop."""
    return lambda: AsyncClient(api.url, key)


@pytest.fixture(scope="session")
def searchable(api: ApiProcess, cpu_worker: WorkerProcess, key: str) -> None:
    """The CPU worker has loaded the embedding model."""

    def answers() -> bool:
        try:
            opened.search("warm").page()
        except EmbeddingUnavailable:
            return False
        return True

    with Client(api.url, key) as opened:
        wait_until(answers, 90, "the embedding model")

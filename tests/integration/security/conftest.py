"""An API process whose Redis can be cut off, with a model that nobody serves, and keys for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from deploy.tenants import create_key
from shared.core.settings import Settings
from tests.conftest import for_the_session
from tests.integration.api.relay import Relay
from tests.processes import QUICK, ApiProcess, free_port

MODEL = "paper"
MakeClient = Callable[..., httpx2.Client]


@pytest.fixture(scope="session")
def redis_relay(environment: dict[str, str]) -> Iterator[Relay]:
    """What stands between the API under test and its Redis."""
    relay = Relay(environment["DARKROOM_REDIS_URL"])
    yield relay
    relay.close()


@pytest.fixture(scope="session")
def guarded(
    settings: Settings,
    environment: dict[str, str],
    redis_relay: Relay,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """The API under test; its jobs stay queued."""
    own = {
        **environment,
        "DARKROOM_REDIS_URL": redis_relay.url,
        "DARKROOM_MODELS_FILE": str(Path(__file__).parents[1] / "api" / "models.toml"),
        "DARKROOM_LOG_LEVEL": "debug",
    }
    url = settings.database_url.get_secret_value()
    key = create_key(url, tenant="guarded", name="guarded", scopes=["jobs", "images"])
    log = tmp_path_factory.mktemp("guarded") / "api.log"
    yield from for_the_session(ApiProcess(own, free_port(), key, log, factory=QUICK))


@pytest.fixture
def client_with(guarded: ApiProcess, settings: Settings) -> Iterator[MakeClient]:
    """Makes clients with fresh keys: `client_with(scopes=…, tenant=…, quotas=…)`."""
    url = settings.database_url.get_secret_value()
    opened: list[httpx2.Client] = []

    def make(**fields: Any) -> httpx2.Client:
        usual: dict[str, Any] = {"tenant": "keyring", "name": "test", "scopes": ["jobs"]}
        key = create_key(url, **{**usual, **fields})
        opened.append(guarded.client(key))
        return opened[-1]

    yield make
    for client in opened:
        client.close()

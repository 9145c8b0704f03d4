"""Which CPU worker leads the dispatcher: in a database where no other worker can."""

from collections.abc import Iterator

import httpx2
import pytest

from deploy.local.servers import EmbeddedServers
from tests.conftest import MIGRATED
from tests.integration.fleet.conftest import Start, drained, worker_of
from tests.processes import wait_until


@pytest.fixture(scope="module")
def own(servers: EmbeddedServers, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment with a database and a broker of its own: the lock is the database's."""
    url = servers.postgres.create_database("leading", template=MIGRATED)
    yield {
        **environment,
        "DARKROOM_DATABASE_URL": url,
        "DARKROOM_REDIS_URL": servers.redis_url.removesuffix("/0") + "/2",
        "DARKROOM_HEARTBEAT": "PT3S",
    }
    servers.postgres.drop_database("leading")


@pytest.mark.long
def test_a_drained_cpu_worker_does_not_lead_the_dispatcher(
    operator: httpx2.Client, start: Start
) -> None:
    start("helper", "cpu")
    wait_until(lambda: worker_of(operator, "helper").get("dispatches"), 30, "a leader")
    operator.post("/v1/workers/helper/drain").raise_for_status()
    worker = drained(operator, "helper")
    assert (worker["kind"], worker["state"]) == ("cpu", "draining")
    wait_until(
        lambda: not worker_of(operator, "helper").get("dispatches", True), 30, "the lock's release"
    )
    operator.post("/v1/workers/helper/resume").raise_for_status()
    wait_until(lambda: worker_of(operator, "helper").get("dispatches"), 30, "a leader again")

"""A CPU worker that waits little for receivers, and a database to make events with."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from celery import Celery
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from deploy.tenants import create_key
from shared.core.broker import celery_app, publish_deliveries
from shared.core.database import open_engine, session_factory
from shared.core.ids import decode_id, encode_id
from shared.core.settings import Settings
from shared.core.tenants import ApiKey
from shared.jobs.models import Job
from shared.jobs.queries import client_requests
from shared.webhooks.models import WebhookDelivery, WebhookHold
from tests.conftest import MIGRATED, MakeKey, for_the_session
from tests.jobs import accept
from tests.processes import ApiProcess, WorkerProcess, wait_until

UNSERVED = "served by nobody"
"""A model whose jobs stay queued until a test ends them."""

PATIENCE = timedelta(seconds=5)
"""Of the worker with a receiver, which may be slow on a machine with other things to do."""


@pytest.fixture(scope="session")
def impatient(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a worker whose webhooks time out soon."""
    return {**environment, "DARKROOM_WEBHOOK_TIMEOUT": f"PT{PATIENCE.seconds}S"}


@pytest.fixture(scope="session")
def delivery_worker(
    settings: Settings, impatient: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A running CPU worker."""
    log = tmp_path_factory.mktemp("worker") / "webhooks.log"
    yield from for_the_session(WorkerProcess(impatient, ["cpu"], log))


@pytest.fixture(scope="session")
def hooks_key(make_key: MakeKey) -> str:
    """A key of a tenant in which no job of another test can end."""
    return make_key("hooks")


@dataclass
class Hooks:
    """What the tests do again and again."""

    http: httpx2.Client
    database: sessionmaker[Session]
    celery: Celery
    tenant: UUID

    def register(self, url: str, **fields: Any) -> dict[str, Any]:
        """A new endpoint, with its secret."""
        answer = self.http.post("/v1/webhook-endpoints", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        endpoint: dict[str, Any] = answer.json()
        return endpoint

    def endpoint(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        """An endpoint as it is now."""
        found: dict[str, Any] = self.http.get(f"/v1/webhook-endpoints/{endpoint['id']}").json()
        return found

    def queue(self, **fields: Any) -> Job:
        """A job that stays queued."""
        usual = {"session_id": "hooks", "model": UNSERVED, "cost": 1, "max_attempts": 1}
        with self.database.begin() as session:
            return accept(session, self.tenant, **usual | fields)

    def cancel(self, job: Job) -> str:
        """End a queued job over HTTP; its wire id."""
        public_id = encode_id("job", job.id)
        answer = self.http.post(f"/v1/jobs/{public_id}/cancel")
        assert answer.json()["state"] == "canceled", answer.text
        return public_id

    def cancel_for(self, receiver: str, origin: str | None = None) -> UUID:
        """End a job of which this URL is to hear; the delivery's id, which no worker was told."""
        webhook = {"url": receiver, "events": ["job.canceled"], "origin": origin or receiver}
        job = self.queue(webhook=webhook)
        with self.database.begin() as session:
            canceled = session.scalars(client_requests.cancel(self.tenant, job.id)).one()
            [made] = canceled.webhook_deliveries or ()
        return made

    def deliveries(self, **filters: Any) -> list[dict[str, Any]]:
        """The log, newest first."""
        page = self.http.get("/v1/webhook-deliveries", params={"limit": 200, **filters})
        assert page.status_code == 200, page.text
        data: list[dict[str, Any]] = page.json()["data"]
        return data

    def wait_for_attempts(self, count: int = 1, **filters: Any) -> dict[str, Any]:
        """The one delivery that the filters find, once it has so many attempts on record."""

        def look() -> dict[str, Any] | None:
            [delivery] = self.deliveries(**filters)
            return delivery if len(delivery["attempts"]) >= count else None

        found: dict[str, Any] = wait_until(look, 40, f"{count} attempts")
        return found

    def end_holds(self) -> None:
        """Let the time pass that receivers have asked for with `Retry-After`."""
        with self.database.begin() as session:
            session.execute(delete(WebhookHold).where(WebhookHold.tenant_id == self.tenant))

    def postpone(self, delivery_id: str, by: timedelta) -> None:
        """Make the next attempt wait for so long, whatever the schedule says."""
        row = WebhookDelivery.id == decode_id("whd", delivery_id)
        later = (
            update(WebhookDelivery)
            .where(row, WebhookDelivery.lease_until.is_(None))
            .values(due_at=func.clock_timestamp() + by)
            .returning(WebhookDelivery.id)
        )

        def is_written() -> bool:
            with self.database.begin() as session:
                return session.scalars(later).one_or_none() is not None

        wait_until(is_written, what="the end of an attempt")

    def make_due(self, *delivery_ids: str, attempts: int | None = None) -> None:
        """Let the time until the next attempt pass, of these or of all deliveries.

        `attempts`: only where there were so many.
        """
        self.end_holds()
        waiting = select(WebhookDelivery.id).where(
            WebhookDelivery.tenant_id == self.tenant, WebhookDelivery.state == "pending"
        )
        if delivery_ids:
            ids = [decode_id("whd", delivery_id) for delivery_id in delivery_ids]
            waiting = waiting.where(WebhookDelivery.id.in_(ids))
        if attempts is not None:
            waiting = waiting.where(WebhookDelivery.attempts == attempts)
        # What a worker is just recording is left alone.
        waiting = waiting.where(WebhookDelivery.lease_until.is_(None))
        free = waiting.with_for_update(skip_locked=True).cte("free")
        statement = (
            update(WebhookDelivery)
            .where(WebhookDelivery.id == free.c.id)
            .values(due_at=func.clock_timestamp())
            .returning(WebhookDelivery.id)
        )
        with self.database.begin() as session:
            due = session.scalars(statement).all()
        publish_deliveries(self.celery, due)


@pytest.fixture
def hooks(
    api: ApiProcess, database: sessionmaker[Session], settings: Settings, hooks_key: str
) -> Iterator[Hooks]:
    """Without endpoints before and after."""
    with database() as session:
        key_id = hooks_key.split("_")[1]
        tenant = session.scalars(select(ApiKey.tenant_id).where(ApiKey.id == key_id)).one()
    with api.client(hooks_key) as http:
        yield Hooks(http, database, celery_app(settings), tenant)
        for endpoint in http.get("/v1/webhook-endpoints", params={"limit": 200}).json()["data"]:
            path = f"/v1/webhook-endpoints/{endpoint['id']}"
            # On a machine with other things to do the API may answer 503 first.
            wait_until(lambda path=path: http.delete(path).status_code in (204, 404), 30, "an end")


@dataclass
class Alone:
    """A database and a queue that no other worker of the tests looks into."""

    hooks: Hooks
    environment: dict[str, str]


@pytest.fixture
def alone(
    servers: EmbeddedServers, environment: dict[str, str], settings: Settings
) -> Iterator[Alone]:
    """A database of its own, and Redis's database 1."""
    url = servers.postgres.create_database("killed_worker", template=MIGRATED)
    create_key(url, tenant="hooks", name="hooks", scopes=["jobs"])
    redis_url = environment["DARKROOM_REDIS_URL"].removesuffix("/0") + "/1"
    own = Settings.model_validate(
        {**settings.model_dump(), "database_url": url, "redis_url": redis_url}
    )
    engine = open_engine(own)
    database = session_factory(engine)
    with database.begin() as session:
        tenant = session.scalars(select(ApiKey.tenant_id)).one()
    changed = {"DARKROOM_DATABASE_URL": url, "DARKROOM_REDIS_URL": redis_url}
    hooks = Hooks(httpx2.Client(), database, celery_app(own), tenant)
    yield Alone(hooks, {**environment, **changed})
    engine.dispose()
    servers.postgres.drop_database("killed_worker")

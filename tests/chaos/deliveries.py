"""A healthy receiver of every job's end, and what the checker asks of it (I4)."""

import contextlib
from collections import defaultdict
from typing import Any, Self
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from shared.core import tenants
from shared.core.ids import decode_id, new_id
from shared.webhooks import queries as webhook_queries
from shared.webhooks.message import new_secret
from shared.webhooks.models import DEFAULT_JOB_EVENTS, WebhookDelivery
from tests.processes import wait_until
from tests.receiver import Receiver


class Deliveries:
    """Registers a loopback receiver as an endpoint of a tenant, and keeps what comes."""

    def __init__(self, database: sessionmaker[Session], tenant: str) -> None:
        self._database = database
        self._tenant = tenant
        self._receiver = Receiver()

    def __enter__(self) -> Self:
        self._receiver.__enter__()
        with self._database.begin() as session:
            tenant_id = session.scalars(tenants.ensure_tenant(self._tenant)).one()
            endpoint: dict[str, Any] = {
                "id": new_id(),
                "tenant_id": tenant_id,
                "url": self._receiver.url,
                "scheme": "v1",
                "events": [str(event) for event in DEFAULT_JOB_EVENTS],
            }
            session.execute(webhook_queries.insert_endpoint(endpoint))
            secret = webhook_queries.ensure_secret(tenant_id, endpoint["id"], "v1", new_secret())
            session.execute(secret)
        return self

    def __exit__(self, *error: object) -> None:
        self._receiver.__exit__(*error)

    def violations(self, ended: dict[UUID, tuple[str, int]]) -> list[str]:
        """What is wrong with the deliveries of jobs that ended; waits for those on their way."""
        # A promise without a date: a busy machine delivers some 20 a second.
        seconds = 60.0 + len(ended) / 10
        with contextlib.suppress(AssertionError):  # What is missing is reported below.
            wait_until(lambda: not self._missing(ended) or self._is_quiet(), seconds, "deliveries")
        found = [f"I4 {job_id}: its end was told to nobody" for job_id in self._missing(ended)]
        for end, ids in self._told().items():
            if len(ids) > 1:
                found.append(f"I4 {end[0]}: told under {len(ids)} ids")
        return found

    def _is_quiet(self) -> bool:
        """Whether the database has nothing to deliver any more."""
        pending = select(WebhookDelivery.id).where(WebhookDelivery.state == "pending").limit(1)
        with self._database.begin() as session:
            return session.scalar(pending) is None

    def _missing(self, ended: dict[UUID, tuple[str, int]]) -> list[UUID]:
        told = self._told()
        return [job_id for job_id, end in ended.items() if (job_id, *end) not in told]

    def _told(self) -> dict[tuple[UUID, str, int], set[str]]:
        """(job, state, sequence) of each end that was told, and the `webhook-id`s used for it."""
        told: dict[tuple[UUID, str, int], set[str]] = defaultdict(set)
        for request in list(self._receiver.received):
            job = request.message["data"]
            end = decode_id("job", job["id"]), job["state"], job["sequence"]
            told[end].add(request.id)
        return told

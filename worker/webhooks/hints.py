"""Tell CPU workers at once of the webhook deliveries that a transition has written."""

from collections.abc import Iterable
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError

from shared.jobs.models import Job
from shared.logging import get_logger
from shared.queue.publish import publish_deliveries

log = get_logger(__name__)


class WebhookHints:
    """Publishes hints after a commit. Redis being away delays deliveries, it loses none."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def jobs_changed(self, jobs: Iterable[Job]) -> None:
        """The deliveries that came with these jobs' transitions are due."""
        self.publish([made for job in jobs for made in job.webhook_deliveries or ()])

    def publish(self, delivery_ids: Iterable[UUID]) -> None:
        """These deliveries are due."""
        try:
            publish_deliveries(self._app, delivery_ids)
        except (KombuError, redis.RedisError, OSError) as error:
            # The dispatcher offers what is due within two seconds.
            log.warning("publish_failed", error=type(error).__name__)

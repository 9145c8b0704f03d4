"""Notice that a batch has begun, and end it, once, when its last job has ended."""

from collections.abc import Sequence
from uuid import UUID

from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import feeding, statements
from shared.batches.events import end_event, snapshot
from shared.batches.models import Batch
from shared.batches.state import end_state
from shared.logging import get_logger
from shared.webhooks import outbox
from worker.webhooks.hints import WebhookHints

log = get_logger(__name__)


class BatchEnds:
    """What happens to batches without anybody asking."""

    def __init__(self, database: sessionmaker[Session], app: Celery) -> None:
        self._database = database
        self._hints = WebhookHints(app)

    def settle(self) -> None:
        """Start what has begun and end what is done.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
        """
        with self._database.begin() as session:
            session.execute(feeding.start_batches())
            complete = session.execute(feeding.list_complete()).all()
        for tenant_id, batch_id in complete:
            with self._database.begin() as session:
                batch = session.scalars(statements.lock_batch(tenant_id, batch_id)).one_or_none()
                deliveries = self._end(session, batch) if batch is not None else ()
            self._hints.publish(deliveries)

    def _end(self, session: Session, batch: Batch) -> Sequence[UUID]:
        """The end, its counts and its webhooks are one transaction; a retry that came first wins.

        The counts cannot change while the batch is locked: all jobs have ended, and whoever wants
        to try one again must lock the batch first. Returns the webhook deliveries, to be published
        after the commit.
        """
        rows = session.execute(statements.count_jobs([batch.id])).all()
        summary = {
            state: {"jobs": jobs, "images": images, "cost": int(cost)}
            for _, state, jobs, images, cost in rows
        }
        state = end_state(
            {name: counted["jobs"] for name, counted in summary.items()},
            skipped_lines=batch.invalid_lines,
            cancel_requested=batch.cancel_requested,
        )
        ended = session.scalars(
            feeding.end_batch(batch.id, state, summary),
            execution_options={"populate_existing": True},
        ).one_or_none()
        if ended is None:
            return ()
        log.info("batch_ended", batch_id=str(ended.id), state=ended.state)
        told = outbox.emit(
            ended.tenant_id,
            end_event(state),
            ended.id,
            snapshot(ended),
            sequence=ended.sequence,
            webhook=ended.webhook,
        )
        return session.scalars(told).one() or ()

"""Rows of the ledger as the batch that clients see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from api.batches.schemas import Batch, BatchItem, BatchLinks, Counts, ImageCounts, Rate
from api.jobs.serialize import present_job
from shared.batches import models as rows
from shared.batches.state import ACTIVE_STATES, BatchState
from shared.core.ids import to_wire
from shared.core.storage import Storage
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.state import TERMINAL_STATES, JobState


@dataclass
class Standing:
    """Where the jobs of a batch are."""

    jobs: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)
    recent_jobs: int = 0
    recent_cost: int = 0
    recent_seconds: float = 0.0

    @classmethod
    def of_ended(cls, batch: rows.Batch) -> "Standing":
        """What the batch's row has kept from its end."""
        standing = cls()
        for state, counted in (batch.summary or {}).items():
            standing.add(state, counted["jobs"], counted["images"], counted["cost"])
        return standing

    def add(self, state: str, jobs: int, images: int, cost: int) -> None:
        """The jobs of one state."""
        self.jobs[state] = jobs
        self.images[state] = images
        self.cost[state] = int(cost)

    @property
    def ended(self) -> int:
        """Jobs in a terminal state."""
        return sum(self.jobs.get(state, 0) for state in TERMINAL_STATES)

    @property
    def cost_ahead(self) -> int:
        """Cost of the jobs that have not ended."""
        return self.cost.get(JobState.QUEUED, 0) + self.cost.get(JobState.RUNNING, 0)


def present_batch(batch: rows.Batch, standing: Standing, public_url: str) -> Batch:
    """The wire form of a batch."""
    batch_id = to_wire("batch", batch.id)
    is_active = batch.state in ACTIVE_STATES
    per_second = standing.recent_jobs / standing.recent_seconds if standing.recent_seconds else 0.0
    return Batch(
        id=batch_id,
        state=_state(batch, standing),
        sequence=batch.sequence,
        paused=batch.paused,
        cancel_requested=batch.cancel_requested,
        priority=batch.priority,
        source=batch.source,
        on_error=batch.on_error,
        session_id=batch.session_id,
        models=batch.models,
        lines=batch.lines,
        invalid_lines=batch.invalid_lines,
        counts=Counts(
            total=batch.jobs, **{state: standing.jobs.get(state, 0) for state in JobState}
        ),
        images=ImageCounts(total=batch.images, done=standing.images.get(JobState.SUCCEEDED, 0)),
        cost=batch.cost,
        fraction=round(standing.ended / batch.jobs, 4) if batch.jobs else 0.0,
        rate=Rate(jobs_per_second=round(per_second, 3)) if is_active and per_second else None,
        eta=_eta(standing) if is_active and not batch.paused else None,
        metadata=batch.batch_metadata,
        webhook_url=batch.webhook["url"] if batch.webhook else None,
        start_deadline=batch.start_deadline,
        finish_deadline=batch.finish_deadline,
        created_at=batch.created_at,
        started_at=batch.started_at,
        finished_at=batch.finished_at,
        links=_links(public_url, batch_id),
    )


def _state(batch: rows.Batch, standing: Standing) -> str:
    """The dispatcher notes the start within a second; the counts may know it already."""
    has_started = standing.ended or standing.jobs.get(JobState.RUNNING)
    if batch.state == BatchState.QUEUED and has_started:
        return BatchState.RUNNING
    return batch.state


def _eta(standing: Standing) -> datetime | None:
    if not standing.recent_cost or not standing.recent_seconds:
        return None
    seconds = standing.cost_ahead * standing.recent_seconds / standing.recent_cost
    return datetime.now(UTC) + timedelta(seconds=seconds)


def present_item(
    job: Job,
    images: Sequence[Image],
    attempts: Sequence[JobAttempt],
    *,
    public_url: str,
    storage: Storage,
) -> BatchItem:
    """One job of a batch."""
    shown = present_job(
        job, public_url=public_url, storage=storage, images=images, attempts=attempts
    )
    return BatchItem(**dict(shown), custom_id=job.custom_id, line=job.line)


def _links(public_url: str, batch_id: str) -> BatchLinks:
    here = f"{public_url.rstrip('/')}/v1/batches/{batch_id}"
    return BatchLinks(
        self=here,
        items=f"{here}/items",
        results=f"{here}/results",
        errors=f"{here}/errors",
        archive=f"{here}/archive",
        contact_sheet=f"{here}/contact-sheet",
        cancel=f"{here}/cancel",
        pause=f"{here}/pause",
        resume=f"{here}/resume",
        retry_failed=f"{here}/retry-failed",
    )

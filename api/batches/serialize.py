"""Rows of the database as the batch that clients see."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from api.batches.schemas import Batch, BatchLinks, Counts, ImageCounts, Rate
from shared.batches import models as rows
from shared.batches.state import ACTIVE_STATES, BatchState
from shared.core.ids import encode_id
from shared.jobs.state import TERMINAL_STATES, JobState


@dataclass
class BatchProgress:
    """Where the jobs of a batch are."""

    jobs: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    cost: dict[str, int] = field(default_factory=dict)
    recent_jobs: int = 0
    recent_cost: int = 0
    recent_seconds: float = 0.0

    @classmethod
    def of_ended(cls, batch: rows.Batch) -> "BatchProgress":
        """What the batch's row has kept from its end."""
        progress = cls()
        for state, counted in (batch.summary or {}).items():
            progress.add(state, counted["jobs"], counted["images"], counted["cost"])
        return progress

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


def serialize_batch(batch: rows.Batch, progress: BatchProgress, public_url: str) -> Batch:
    """The wire form of a batch."""
    batch_id = encode_id("batch", batch.id)
    is_active = batch.state in ACTIVE_STATES
    per_second = progress.recent_jobs / progress.recent_seconds if progress.recent_seconds else 0.0
    return Batch.of(
        batch,
        id=batch_id,
        state=_state(batch, progress),
        counts=Counts(
            total=batch.jobs, **{state: progress.jobs.get(state, 0) for state in JobState}
        ),
        images=ImageCounts(total=batch.images, done=progress.images.get(JobState.SUCCEEDED, 0)),
        fraction=round(progress.ended / batch.jobs, 4) if batch.jobs else 0.0,
        rate=Rate(jobs_per_second=round(per_second, 3)) if is_active and per_second else None,
        eta=_eta(progress) if is_active and not batch.paused else None,
        metadata=batch.batch_metadata,
        webhook_url=batch.webhook["url"] if batch.webhook else None,
        links=_links(public_url, batch_id),
    )


def _state(batch: rows.Batch, progress: BatchProgress) -> str:
    """The dispatcher notes the start within a second; the counts may know it already."""
    has_started = progress.ended or progress.jobs.get(JobState.RUNNING)
    if batch.state == BatchState.QUEUED and has_started:
        return BatchState.RUNNING
    return batch.state


def _eta(progress: BatchProgress) -> datetime | None:
    if not progress.recent_cost or not progress.recent_seconds:
        return None
    seconds = progress.cost_ahead * progress.recent_seconds / progress.recent_cost
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _links(public_url: str, batch_id: str) -> BatchLinks:
    here = f"{public_url}/v1/batches/{batch_id}"
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

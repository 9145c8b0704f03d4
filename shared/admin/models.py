"""Table of drains: the workers that an operator is draining."""

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from shared.core.database import Base, CreatedAt, Instant


class WorkerDrain(Base):
    """A worker's order to take no more work. Gone when it is resumed, or has stopped in order."""

    __tablename__ = "worker_drains"

    worker: Mapped[str] = mapped_column(Text, primary_key=True)
    requested_by: Mapped[str | None] = mapped_column(Text)
    """The id of the API key."""
    requested_at: Mapped[CreatedAt]
    drained_at: Mapped[Instant | None]
    """When the worker had nothing left in flight."""
    seen_at: Mapped[CreatedAt]
    """When the worker last read this; an order that nobody reads is purged some day."""

"""Tables of batches, their validation reports, and the files they can be made from."""

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.batches.state import TERMINAL_STATES, BatchState
from shared.core.database import Base, CreatedAt, Id, Instant, Json, sql_list


class Batch(Base):
    """Many jobs accepted in one transaction. Counts are not kept here but asked of the jobs."""

    __tablename__ = "batches"
    __table_args__ = (
        CheckConstraint(f"state IN ({sql_list(BatchState)})", name="state_is_known"),
        CheckConstraint(
            f"(state IN ({sql_list(TERMINAL_STATES)})) = (finished_at IS NOT NULL)",
            name="terminal_has_finished_at",
        ),
        CheckConstraint("(finished_at IS NULL) = (summary IS NULL)", name="finished_has_summary"),
        CheckConstraint("priority BETWEEN 0 AND 9", name="priority_in_range"),
        Index("ix_batches_tenant", "tenant_id", "id"),
        Index("ix_batches_active", "id", postgresql_where=text("finished_at IS NULL")),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    api_key_id: Mapped[str | None] = mapped_column(Text)
    """Whose turn a job of this batch takes: the enqueuer goes round the keys."""
    name: Mapped[str | None] = mapped_column(Text)
    """As given, or its file's."""
    session_id: Mapped[str | None] = mapped_column(Text)
    """The session of all lines that name none."""
    source: Mapped[str] = mapped_column(Text)
    """``json``, ``jsonl`` or ``csv``."""
    batch_metadata: Mapped[Json] = mapped_column("metadata")
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """``{"url": …, "events": […]}`` or null."""
    models: Mapped[list[str]] = mapped_column(ARRAY(Text))
    on_error: Mapped[str] = mapped_column(Text)
    """``reject`` or ``skip``."""
    start_deadline: Mapped[Instant | None]
    finish_deadline: Mapped[Instant | None]

    lines: Mapped[int] = mapped_column(Integer)
    """Lines that were read, blank ones not counted."""
    invalid_lines: Mapped[int] = mapped_column(Integer)
    jobs: Mapped[int] = mapped_column(Integer)
    images: Mapped[int] = mapped_column(Integer)
    cost: Mapped[int] = mapped_column(BigInteger)
    """Sum of width × height × steps over all images."""

    priority: Mapped[int] = mapped_column(SmallInteger)
    """0 … 9; among one key's batches a higher one is enqueued first."""
    paused: Mapped[bool] = mapped_column(server_default=text("false"))
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    state: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """The counts at the end, written with the terminal state; null until then."""
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Instant | None]
    finished_at: Mapped[Instant | None]


class BatchReport(Base):
    """What was wrong with a batch's file: all errors as JSONL, compressed with zlib."""

    __tablename__ = "batch_reports"

    batch_id: Mapped[UUID] = mapped_column(
        ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    )
    errors: Mapped[int] = mapped_column(Integer)
    jsonl_zlib: Mapped[bytes] = mapped_column(LargeBinary)


class BatchFile(Base):
    """A JSONL or CSV file that a client has uploaded, to make batches from."""

    __tablename__ = "batch_files"
    __table_args__ = (
        Index("ix_batch_files_tenant", "tenant_id", "id"),
        Index("ix_batch_files_key", "api_key_id"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    api_key_id: Mapped[str | None] = mapped_column(Text)
    """Whose quota it takes from."""
    name: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    s3_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[CreatedAt]

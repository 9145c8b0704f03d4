"""Tables of jobs, their attempts, the device time they took, and idempotency keys."""

import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Date,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, query_expression

from shared.core.database import Base, CreatedAt, Id, Instant, Json, sql_list
from shared.jobs.state import TERMINAL_STATES, JobState

DEFAULT_MASK_BLUR = 4
"""Pixels: the radius by which the edge of a mask is blurred unless a job says otherwise."""

MASK_KEY = literal_column("jobs.init_image -> 'mask' ->> 's3_key'", Text)
"""Of a job: what its mask is stored under; null without one. Written as its index is."""
HAS_MASK = literal_column("(jobs.init_image -> 'mask') IS NOT NULL", Boolean)

OPTION_IMAGES = literal_column("jsonb_path_query_array(jobs.options, '$.*[*].s3_key')", JSONB)
"""Of a job: what the images that its options name are stored under. Written as its index is."""
HAS_OPTION_IMAGES = literal_column("jsonb_path_exists(jobs.options, '$.*[*].s3_key')", Boolean)

ANSWERED_JOB = literal_column("right(idempotency_keys.response ->> 'location', 30)", Text)
"""Of an idempotency key: the wire id of the job that its answer is about, or another text. Written
as its index is."""

REPRODUCES = "reproduces"
"""The metadata key of a job that makes an image again; its value is the image's wire id."""


class Job(Base):
    """One request for 1…n images, from submission to its terminal state."""

    __tablename__ = "jobs"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"]),
        CheckConstraint(f"state IN ({sql_list(JobState)})", name="state_is_known"),
        CheckConstraint(
            f"(state IN ({sql_list(TERMINAL_STATES)})) = (finished_at IS NOT NULL)",
            name="terminal_has_finished_at",
        ),
        CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)",
            name="running_has_lease",
        ),
        CheckConstraint("(state = 'failed') = (error_code IS NOT NULL)", name="failed_has_error"),
        CheckConstraint("queue_class IN ('interactive', 'bulk')", name="queue_class_is_known"),
        Index(
            "ix_jobs_queued",
            "model",
            "queue_class",
            "id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index("ix_jobs_lease_until", "lease_until", postgresql_where=text("state = 'running'")),
        Index(
            "ix_jobs_start_deadline",
            "start_deadline",
            postgresql_where=text("state = 'queued' AND start_deadline IS NOT NULL"),
        ),
        Index(
            "ix_jobs_finish_deadline",
            "finish_deadline",
            postgresql_where=text("finished_at IS NULL AND finish_deadline IS NOT NULL"),
        ),
        Index(
            "ix_jobs_unfinished_of_key", "api_key_id", postgresql_where=text("finished_at IS NULL")
        ),
        Index(
            "ix_jobs_unbatched_of_key",
            "api_key_id",
            "id",
            postgresql_where=text("finished_at IS NULL AND batch_id IS NULL"),
        ),
        Index("ix_jobs_tenant", "tenant_id", "id"),
        Index("ix_jobs_session", "tenant_id", "session_id", "id"),
        # Most jobs succeeded: a list of others would go through all of them.
        Index(
            "ix_jobs_not_succeeded",
            *("tenant_id", "state", "id"),
            postgresql_where=text("state <> 'succeeded'"),
        ),
        Index(
            "ix_jobs_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
        Index(
            "ix_jobs_init_image",
            text("(init_image ->> 's3_key'::text)"),
            postgresql_where=text("init_image IS NOT NULL"),
        ),
        Index(
            "ix_jobs_mask_image",
            text("((init_image -> 'mask'::text) ->> 's3_key'::text)"),
            postgresql_where=text("((init_image -> 'mask'::text) IS NOT NULL)"),
        ),
        Index(
            "ix_jobs_option_images",
            text("jsonb_path_query_array(options, '$.*[*].\"s3_key\"'::jsonpath)"),
            postgresql_using="gin",
            postgresql_where=text("jsonb_path_exists(options, '$.*[*].\"s3_key\"'::jsonpath)"),
        ),
        Index(
            "uq_jobs_custom_id",
            "batch_id",
            "custom_id",
            unique=True,
            postgresql_where=text("batch_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_batch_queued",
            "batch_id",
            "id",
            postgresql_where=text("state = 'queued' AND batch_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_batch_finished",
            "batch_id",
            "finished_at",
            "id",
            postgresql_where=text("finished_at IS NOT NULL AND batch_id IS NOT NULL"),
        ),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    api_key_id: Mapped[str | None] = mapped_column(Text)
    """Whose quotas it takes from: the key that submitted it, or retried it last."""
    session_id: Mapped[str] = mapped_column(Text)
    batch_id: Mapped[UUID | None] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    custom_id: Mapped[str | None] = mapped_column(Text)
    """The client's own name for a line of a batch; unique within the batch."""
    line: Mapped[int | None] = mapped_column(Integer)
    """The line of the batch's file that this job comes from, counted from 1."""

    # What is asked for; never changes after submission.
    kind: Mapped[str] = mapped_column(Text)
    """``txt2img``, ``img2img``, ``inpaint``, or ``upscale``, whose only pass is the second one."""
    model: Mapped[str] = mapped_column(Text)
    queue_class: Mapped[str] = mapped_column(Text)
    prompt: Mapped[str] = mapped_column(Text)
    negative_prompt: Mapped[str | None] = mapped_column(Text)
    seeds: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    steps: Mapped[int] = mapped_column(Integer)
    guidance_scale: Mapped[float]
    true_cfg_scale: Mapped[float | None]
    """Guidance by a second call, where the family has it. Null: as the model is declared."""
    scheduler: Mapped[str] = mapped_column(Text)
    strength: Mapped[float | None]
    resize_mode: Mapped[str | None] = mapped_column(Text)
    """``fill``, ``fit`` or ``stretch``: how the initial image gets the job's size. Null without
    one, and in rows from before the choice, whose images were stretched."""
    init_image: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """``{"ref": wire id, "s3_key": …, "sha256": …}`` of the image that img2img starts from; of its
    mask, if it is another image, the same under ``mask``."""
    loras: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """``[{"name": …, "scale": …}]``, in the order in which they act; a tenant's own have their
    ``sha256`` and ``s3_key``, too, and where they are only named, their ``sha256``."""
    options: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    """The fields of `api.jobs.options.JobOptions` that differ from their default, by name; `hires`
    with the final `width` and `height`, too, and each image of a list (`references`) with its
    `s3_key` and `sha256`."""
    output_format: Mapped[str] = mapped_column(Text)
    previews: Mapped[bool] = mapped_column(server_default=text("false"))
    batch_size: Mapped[int | None] = mapped_column(Integer)
    """A fixed engine shape, for reproductions; null: the model's own."""
    job_metadata: Mapped[Json] = mapped_column("metadata")
    """Set by the client, but for the key `REPRODUCES`."""
    warnings: Mapped[list[dict[str, str]]] = mapped_column(JSONB, server_default=text("'[]'"))
    cost: Mapped[int] = mapped_column(BigInteger)
    """width × height × steps that run × images, of both passes; a strength below 1 leaves some of
    the steps out, and ControlNets add a share."""
    estimated_gpu_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    """Device time of one attempt, as estimated at the submission: while the job is unfinished, its
    key's quota holds this much back."""
    start_deadline: Mapped[Instant | None]
    finish_deadline: Mapped[Instant | None]
    webhook: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """``{"url", "events", "origin"}`` of the job's own webhook, besides the tenant's endpoints."""
    estimate: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """What was estimated at the submission (a `DurationEstimate`); null: nothing."""
    traceparent: Mapped[str | None] = mapped_column(Text)
    """The W3C trace context of the submission, where traces are on: messages get lost, this does
    not, so that a retry or a late publication still belongs to the trace."""

    # Where it stands.
    state: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Counts every change a client can see; the resource's ETag."""
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """The fencing token: grows with every claim and is never reset."""
    failures: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Attempts that ended badly; a released attempt is not one. Compared with `max_attempts`."""
    losses: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    """Attempts whose worker vanished; two make it a poison job."""
    max_attempts: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[Instant | None]
    not_before: Mapped[Instant | None]
    """Earliest next attempt, after a failure that can pass."""
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    gpu_seconds: Mapped[float | None]
    """Device time of all attempts that have ended; null before the first has."""
    filtered: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """Images of the attempt that ended it which a filter refused: `index`, `seed`, `filter`,
    `reason`, `gpu_seconds` of each. Their pixels are kept nowhere."""
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Instant | None]
    """When the latest attempt began."""
    finished_at: Mapped[Instant | None]

    webhook_deliveries: Mapped[list[UUID] | None] = query_expression()
    """What a transition's statement wrote into the outbox that workers are to be told of after the
    commit; no column, and null for a job that was merely read."""


class UploadedLora(Base):
    """A LoRA of a tenant's own."""

    __tablename__ = "loras"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    family: Mapped[str] = mapped_column(Text)
    trigger_words: Mapped[list[str]] = mapped_column(ARRAY(Text))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    s3_key: Mapped[str] = mapped_column(Text)
    api_key_id: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[CreatedAt]

    @property
    def reference(self) -> dict[str, str]:
        """What a job keeps of it besides name and scale, so that no later file takes its place."""
        return {"sha256": self.sha256, "s3_key": self.s3_key}


class JobAttempt(Base):
    """One claim of a job by one worker, kept for ever as evidence."""

    __tablename__ = "job_attempts"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    worker: Mapped[str] = mapped_column(Text)
    device: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[CreatedAt]
    finished_at: Mapped[Instant | None]
    outcome: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    gpu_seconds: Mapped[float | None]
    """Device time; where the worker was lost, what it can have used until its last renewal."""


class DeviceTime(Base):
    """What the jobs of a key have used of devices on a day; outlives the jobs."""

    __tablename__ = "device_time"

    api_key_id: Mapped[str] = mapped_column(Text, primary_key=True)
    day: Mapped[datetime.date] = mapped_column(Date, primary_key=True)
    """Of the end of the attempt, in UTC."""
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    """Drawn by chance, so that attempts that end at once seldom wait for each other."""
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    gpu_seconds: Mapped[float]


class IdempotencyKey(Base):
    """Remembers the answer to a submission, so that a retry gets it again."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        Index("ix_idempotency_keys_created_at", "created_at"),
        Index("ix_idempotency_keys_job", text("\"right\"(response ->> 'location'::text, 30)")),
    )

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    request_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int] = mapped_column(Integer)
    response: Mapped[Json]
    created_at: Mapped[CreatedAt]

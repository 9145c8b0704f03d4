"""Row-level security, the API's role, quotas of keys, and the index that counts what a key holds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.walls import ensure_role, lower_wall, raise_wall, raise_wall_behind
from shared.core.tenants import ROLE

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Tables made up to here; later migrations put their own behind the wall.
_OF_TENANTS = (
    "api_keys",
    "batch_files",
    "batches",
    "idempotency_keys",
    "images",
    "jobs",
    "prompts",
    "sessions",
    "uploads",
    "webhook_attempts",
    "webhook_deliveries",
    "webhook_endpoints",
    "webhook_events",
    "webhook_secrets",
)
_BEHIND = {
    "batch_reports": ("batches", "batch_id"),
    "job_attempts": ("jobs", "job_id"),
}


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "api_keys", sa.Column("quotas", postgresql.JSONB(astext_type=sa.Text()), nullable=True)
    )
    op.create_index(
        "ix_jobs_unfinished_of_key",
        "jobs",
        ["api_key_id"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    ensure_role()
    raise_wall("tenants", tenant="id")
    for table in _OF_TENANTS:
        raise_wall(table)
    for table, (parent, reference) in _BEHIND.items():
        raise_wall_behind(table, parent, reference)
    _create_jobs_ahead()


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP FUNCTION darkroom_jobs_ahead")
    for table in (*_BEHIND, *_OF_TENANTS, "tenants"):
        lower_wall(table)
    # The role stays: it belongs to the whole server, where another database may use it.
    op.drop_index(
        "ix_jobs_unfinished_of_key",
        table_name="jobs",
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.drop_column("api_keys", "quotas")


_JOBS_AHEAD = """
CREATE FUNCTION darkroom_jobs_ahead(job uuid, of_model text, of_lane text) RETURNS bigint AS $$
BEGIN
    RETURN (SELECT count(*) FROM jobs
            WHERE state = 'queued' AND model = of_model AND lane = of_lane AND id < job)
        + CASE WHEN of_lane = 'bulk'
            THEN (SELECT count(*) FROM jobs
                  WHERE state = 'queued' AND model = of_model AND lane = 'interactive')
            ELSE 0 END;
END
$$ LANGUAGE plpgsql STABLE SECURITY DEFINER
"""


def _create_jobs_ahead() -> None:
    """The one look over the wall: how many jobs of all tenants wait before one. A number only."""
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(
        _JOBS_AHEAD
        + f" SET search_path = {schema}, pg_temp"  # what a caller names jobs is not ours
    )
    op.execute("REVOKE ALL ON FUNCTION darkroom_jobs_ahead FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION darkroom_jobs_ahead TO {ROLE}")

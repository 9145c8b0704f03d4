"""The jobs of a tenant by state, but for those that succeeded."""

from collections.abc import Sequence

from alembic import op

revision: str = "0035"
down_revision: str | None = "0034"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # Beside the traffic: a scan of all jobs may take longer than a lease.
    with op.get_context().autocommit_block():
        # One that was cut off is invalid, and in the way.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_not_succeeded")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_jobs_not_succeeded ON jobs (tenant_id, state, id)"
            " WHERE state <> 'succeeded'"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_not_succeeded")

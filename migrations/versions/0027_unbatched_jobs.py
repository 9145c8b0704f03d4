"""The unfinished jobs of a key that are of no batch."""

from collections.abc import Sequence

from alembic import op

revision: str = "0027"
down_revision: str | None = "0026"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # Beside the traffic: a scan of all jobs may take longer than a lease.
    with op.get_context().autocommit_block():
        # One that was cut off is invalid, and in the way.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_unbatched_of_key")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_jobs_unbatched_of_key ON jobs (api_key_id, id)"
            " WHERE finished_at IS NULL AND batch_id IS NULL"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_unbatched_of_key")

"""Which jobs a mask is kept for."""

from collections.abc import Sequence

from alembic import op

revision: str = "0026"
down_revision: str | None = "0025"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # Beside the traffic: a scan of all jobs may take longer than a lease.
    with op.get_context().autocommit_block():
        # One that was cut off is invalid, and in the way.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_mask_image")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_jobs_mask_image"
            " ON jobs (((init_image -> 'mask') ->> 's3_key'))"
            " WHERE (init_image -> 'mask') IS NOT NULL"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_mask_image")

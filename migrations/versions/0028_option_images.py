"""Which jobs an image is kept for that their options name."""

from collections.abc import Sequence

from alembic import op

revision: str = "0028"
down_revision: str | None = "0029"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_KEYS = "'$.*[*].s3_key'"


def upgrade() -> None:
    # Beside the traffic: a scan of all jobs may take longer than a lease.
    with op.get_context().autocommit_block():
        # One that was cut off is invalid, and in the way.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_option_images")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_jobs_option_images"
            f" ON jobs USING gin (jsonb_path_query_array(options, {_KEYS}))"
            f" WHERE jsonb_path_exists(options, {_KEYS})"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_option_images")

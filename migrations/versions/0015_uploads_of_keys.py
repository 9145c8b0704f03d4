"""Whose uploads are, and when they were last wanted: for their quota and their retention."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("uploads", sa.Column("api_key_id", sa.Text(), nullable=True))
    op.add_column("uploads", sa.Column("used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batch_files", sa.Column("api_key_id", sa.Text(), nullable=True))
    op.create_index("ix_uploads_tenant", "uploads", ["tenant_id", "id"])
    op.create_index("ix_uploads_key", "uploads", ["api_key_id"])
    op.create_index("ix_batch_files_key", "batch_files", ["api_key_id"])
    op.create_index(
        "ix_jobs_init_image",
        "jobs",
        [sa.text("(init_image ->> 's3_key'::text)")],
        postgresql_where=sa.text("init_image IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_jobs_init_image", table_name="jobs")
    op.drop_index("ix_batch_files_key", table_name="batch_files")
    op.drop_index("ix_uploads_key", table_name="uploads")
    op.drop_index("ix_uploads_tenant", table_name="uploads")
    op.drop_column("batch_files", "api_key_id")
    op.drop_column("uploads", "used_at")
    op.drop_column("uploads", "api_key_id")

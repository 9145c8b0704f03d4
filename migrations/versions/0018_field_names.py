"""Columns have the field's names: a job's queue class and batch size."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from shared.core.tenants import ROLE

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_RENAMES = (("lane", "queue_class"), ("rows", "batch_size"))
_JOBS_AHEAD = """
CREATE FUNCTION darkroom_jobs_ahead(job uuid, of_model text, of_{column} text) RETURNS bigint AS $$
BEGIN
    RETURN (SELECT count(*) FROM jobs
            WHERE state = 'queued' AND model = of_model AND {column} = of_{column} AND id < job)
        + CASE WHEN of_{column} = 'bulk'
            THEN (SELECT count(*) FROM jobs
                  WHERE state = 'queued' AND model = of_model AND {column} = 'interactive')
            ELSE 0 END;
END
$$ LANGUAGE plpgsql STABLE SECURITY DEFINER
"""


def upgrade() -> None:
    for old, new in _RENAMES:
        op.alter_column("jobs", old, new_column_name=new)
    _rename_constraint("jobs", "ck_jobs_lane_is_known", "ck_jobs_queue_class_is_known")
    op.rename_table("doomed_objects", "pending_deletions")
    for kind in ("pk_{}", "fk_{}_tenant_id_tenants"):
        names = (kind.format("doomed_objects"), kind.format("pending_deletions"))
        _rename_constraint("pending_deletions", *names)
    _create_jobs_ahead("queue_class")


def downgrade() -> None:
    for kind in ("pk_{}", "fk_{}_tenant_id_tenants"):
        names = (kind.format("pending_deletions"), kind.format("doomed_objects"))
        _rename_constraint("pending_deletions", *names)
    op.rename_table("pending_deletions", "doomed_objects")
    _rename_constraint("jobs", "ck_jobs_queue_class_is_known", "ck_jobs_lane_is_known")
    for old, new in _RENAMES:
        op.alter_column("jobs", new, new_column_name=old)
    _create_jobs_ahead("lane")


def _rename_constraint(table: str, old: str, new: str) -> None:
    op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {old} TO {new}")


def _create_jobs_ahead(column: str) -> None:
    """How many jobs of all tenants wait before one: a number is all that it tells of others."""
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute("DROP FUNCTION darkroom_jobs_ahead")
    op.execute(
        _JOBS_AHEAD.format(column=column)
        + f" SET search_path = {schema}, pg_temp"  # what a caller names jobs is not ours
    )
    op.execute("REVOKE ALL ON FUNCTION darkroom_jobs_ahead FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION darkroom_jobs_ahead TO {ROLE}")

"""The place in the queue is counted to 1,000: counting all of a long queue took milliseconds."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0030"
down_revision: str | None = "0028"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_AHEAD = """
CREATE OR REPLACE FUNCTION darkroom_jobs_ahead(job uuid, of_model text, of_queue_class text)
RETURNS bigint AS $$
BEGIN
    RETURN (SELECT count(*) FROM (
            SELECT FROM jobs
            WHERE state = 'queued' AND model = of_model AND queue_class = of_queue_class
                AND id < job
            {limit}) AS older)
        + CASE WHEN of_queue_class = 'bulk'
            THEN (SELECT count(*) FROM (
                  SELECT FROM jobs
                  WHERE state = 'queued' AND model = of_model AND queue_class = 'interactive'
                  {limit}) AS first)
            ELSE 0 END;
END
$$ LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = {schema}, pg_temp
"""


def upgrade() -> None:
    _replace("LIMIT 1001")


def downgrade() -> None:
    _replace("")


def _replace(limit: str) -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(_AHEAD.format(limit=limit, schema=schema))

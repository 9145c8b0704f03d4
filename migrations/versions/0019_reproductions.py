"""Which image another one reproduces: lists, searches and counts leave reproductions out."""

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from alembic import op

from shared.core.ids import MalformedId, decode_id

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_FOREIGN_KEY = "fk_images_reproduces_images"


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("images", sa.Column("reproduces", sa.Uuid(), nullable=True))
    op.execute(
        f"ALTER TABLE images ADD CONSTRAINT {_FOREIGN_KEY} FOREIGN KEY (reproduces)"
        " REFERENCES images (id) ON DELETE SET NULL NOT VALID"
    )
    op.execute(f"ALTER TABLE images VALIDATE CONSTRAINT {_FOREIGN_KEY}")
    _mark_those_on_record()
    with op.get_context().autocommit_block():
        op.drop_index(
            "ix_images_reproduces",
            table_name="images",
            if_exists=True,
            postgresql_concurrently=True,
        )
        op.create_index(
            "ix_images_reproduces",
            "images",
            ["reproduces"],
            postgresql_concurrently=True,
            postgresql_where=sa.text("reproduces IS NOT NULL"),
        )
    _replace_index(["prompt_id", "reproduces"])


def downgrade() -> None:
    _replace_index(["prompt_id"])
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_images_reproduces", table_name="images")
    op.drop_column("images", "reproduces")


def _mark_those_on_record() -> None:
    connection = op.get_bind()
    jobs = (
        "SELECT id, metadata ->> 'reproduces' FROM jobs WHERE jsonb_exists(metadata, 'reproduces')"
    )
    for job_id, image_id in connection.execute(sa.text(jobs)).all():
        try:
            original: UUID = decode_id("img", image_id)
        except MalformedId:
            continue  # Before the key was reserved, clients could set it.
        connection.execute(_MARK, {"job": job_id, "original": original})


_MARK = sa.text(
    "UPDATE images SET reproduces = original.id FROM images AS original"
    " WHERE images.job_id = :job AND original.id = :original"
    " AND original.tenant_id = images.tenant_id"
)


def _replace_index(include: list[str]) -> None:
    """Beside the traffic: an index of all images may take minutes to build."""
    with op.get_context().autocommit_block():
        # One that was cut off is invalid, and in the way.
        op.drop_index(
            "ix_images_session_new",
            table_name="images",
            if_exists=True,
            postgresql_concurrently=True,
        )
        op.create_index(
            "ix_images_session_new",
            "images",
            ["tenant_id", "session_id", "id"],
            postgresql_concurrently=True,
            postgresql_include=include,
        )
        op.drop_index(
            "ix_images_session", table_name="images", if_exists=True, postgresql_concurrently=True
        )
        op.execute("ALTER INDEX ix_images_session_new RENAME TO ix_images_session")

"""The prompts of a session's pictures out of the index alone, for searches within a session."""

from collections.abc import Sequence

from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    _replace(["prompt_id"])


def downgrade() -> None:
    _replace([])


def _replace(include: list[str]) -> None:
    """Beside the traffic: an index of all pictures may take minutes to build."""
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

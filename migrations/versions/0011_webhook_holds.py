"""How long a webhook receiver holds deliveries back, kept beside them: it counts for new ones too."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from migrations.walls import lower_wall, raise_wall

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "webhook_holds",
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name=op.f("fk_webhook_holds_tenant_id_tenants"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("receiver", name=op.f("pk_webhook_holds")),
    )
    op.create_index("ix_webhook_holds_held_until", "webhook_holds", ["held_until"])
    raise_wall("webhook_holds")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    lower_wall("webhook_holds")
    op.drop_table("webhook_holds")

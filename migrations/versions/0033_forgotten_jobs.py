"""Find what is kept of a deleted job elsewhere: its webhooks' events, its submission's answer."""

from collections.abc import Sequence

from alembic import op

revision: str = "0033"
down_revision: str | None = "0032"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_INDEXES = {
    "ix_webhook_events_resource_id": "webhook_events (resource_id)",
    "ix_idempotency_keys_job": "idempotency_keys (right(response ->> 'location', 30))",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, of in _INDEXES.items():
            # One that was cut off is invalid, and in the way.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {of}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name in _INDEXES:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

"""Quotas of device time and uploads, holds of webhook receivers, resize modes, parts of prompts."""

from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from alembic import op

from migrations.row_level_security import disable_rls, enable_rls
from shared.core.tenants import ROLE, TENANT

revision: str = "0016"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# As shared.search.terms.SPACELESS is in this release.
_SPACELESS = (
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua980-\ua9ff\uaa60-\uaadf"
    "\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff\u2600-\u27bf"
    "\U0001f300-\U0001faff]"
)
_HAS_SOME = f"text ~ '{_SPACELESS}'"


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # How an initial image is brought to the size of its job; null in older rows: stretched.
    op.add_column("jobs", sa.Column("resize_mode", sa.Text()))
    # What an unfinished job is estimated to take, for the quotas of device time.
    estimated = sa.Column(
        "estimated_gpu_seconds", sa.Float(), server_default=sa.text("0"), nullable=False
    )
    op.add_column("jobs", estimated)
    # Whose uploads are, and when they were last wanted: for their quota and their retention.
    op.add_column("uploads", sa.Column("api_key_id", sa.Text()))
    op.add_column("uploads", sa.Column("used_at", sa.DateTime(timezone=True)))
    op.add_column("batch_files", sa.Column("api_key_id", sa.Text()))
    op.create_table(
        "device_time",
        sa.Column("api_key_id", sa.Text(), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("slot", sa.SmallInteger(), primary_key=True),
        _tenant(),
        sa.Column("gpu_seconds", sa.Float(), nullable=False),
    )
    enable_rls("device_time")
    # How long a receiver holds deliveries back: it counts for new ones too.
    op.create_table(
        "webhook_holds",
        sa.Column("receiver", sa.Text(), primary_key=True),
        _tenant(),
        sa.Column("held_until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_webhook_holds_held_until", "webhook_holds", ["held_until"])
    enable_rls("webhook_holds")
    _create_functions()


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP FUNCTION darkroom_prompts_spelling")
    op.execute("DROP FUNCTION darkroom_grams")
    for table in ("webhook_holds", "device_time"):
        disable_rls(table)
        op.drop_table(table)
    op.drop_column("batch_files", "api_key_id")
    for column in ("used_at", "api_key_id"):
        op.drop_column("uploads", column)
    for column in ("estimated_gpu_seconds", "resize_mode"):
        op.drop_column("jobs", column)


def _tenant() -> sa.Column[UUID]:
    parent = sa.ForeignKey("tenants.id", ondelete="CASCADE")
    return sa.Column("tenant_id", sa.Uuid(), parent, nullable=False)


def _create_functions() -> None:
    """Parts of prompts in scripts without spaces, found by an index of neighbouring characters.

    As in 0010: operators that are not leakproof use no index behind row-level security.
    """
    op.execute(
        "CREATE FUNCTION darkroom_grams(prompt text) RETURNS text[] AS $$"  # noqa: S608
        " SELECT coalesce(array_agg(DISTINCT substr(run.parts[1], place, size)), '{}')"
        f" FROM regexp_matches(prompt, '{_SPACELESS}+', 'g') AS run(parts),"
        " generate_series(1, 2) AS size,"
        " generate_series(1, length(run.parts[1]) - size + 1) AS place"
        " $$ LANGUAGE sql IMMUTABLE PARALLEL SAFE"
    )
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    tenant = f"nullif(current_setting('{TENANT}', true), '')::uuid"
    look = f"SELECT id FROM prompts WHERE tenant_id = {tenant} AND {_HAS_SOME} AND"  # noqa: S608
    op.execute(
        "CREATE FUNCTION darkroom_prompts_spelling(grams text[], every_one boolean, most integer)"
        " RETURNS SETOF uuid AS $$ BEGIN IF every_one THEN"
        f" RETURN QUERY {look} darkroom_grams(text) @> grams LIMIT most;"
        f" ELSE RETURN QUERY {look} darkroom_grams(text) && grams LIMIT most;"
        " END IF; END $$ LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100"
        # A plan for all arrays would not know how frequent these are.
        " SET plan_cache_mode = force_custom_plan"
        f" SET search_path = {schema}, pg_temp"
    )
    op.execute("REVOKE ALL ON FUNCTION darkroom_prompts_spelling FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION darkroom_prompts_spelling TO {ROLE}")

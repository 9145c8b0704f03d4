"""Parts of prompts in scripts without spaces are found by an index of neighbouring characters."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from shared.core.tenants import ROLE, TENANT

revision: str = "0016"
down_revision: str | None = "0015"
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
    op.execute(
        "CREATE FUNCTION darkroom_grams(prompt text) RETURNS text[] AS $$"  # noqa: S608
        " SELECT coalesce(array_agg(DISTINCT substr(run.parts[1], place, size)), '{}')"
        f" FROM regexp_matches(prompt, '{_SPACELESS}+', 'g') AS run(parts),"
        " generate_series(1, 2) AS size,"
        " generate_series(1, length(run.parts[1]) - size + 1) AS place"
        " $$ LANGUAGE sql IMMUTABLE PARALLEL SAFE"
    )
    _create_look_through_the_wall()
    # Beside the traffic; only prompts that have such characters are in it.
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_prompts_grams")
        op.execute(
            "CREATE INDEX CONCURRENTLY ix_prompts_grams ON prompts USING gin"
            f" (darkroom_grams(text)) WITH (fastupdate = off) WHERE {_HAS_SOME}"
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_prompts_grams")
    op.execute("DROP FUNCTION darkroom_prompts_spelling")
    op.execute("DROP FUNCTION darkroom_grams")


def _create_look_through_the_wall() -> None:
    """As in 0005: operators that are not leakproof use no index behind row-level security."""
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

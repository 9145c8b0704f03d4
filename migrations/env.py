"""Alembic's entry: the database comes from the settings, the target from every table module."""

from alembic import context
from sqlalchemy import create_engine, pool

from migrations.metadata import target_metadata
from migrations.servers import require_versions
from shared.core.settings import get_settings, with_driver
from shared.search.embeddings import IMAGES, PROMPTS


def _is_declared(name: str | None, kind: str, _parents: object) -> bool:
    """False for indexes of embedding models, which follow from the settings, and of expressions."""
    others = (PROMPTS.prefix, IMAGES.prefix, "ix_prompts_grams")
    return not (kind == "index" and name is not None and name.startswith(others))


def run() -> None:
    """Apply the migrations in one transaction each."""
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()
        return
    url = context.config.attributes.get("database_url")
    engine = create_engine(
        with_driver(url or get_settings().database_url.get_secret_value()), poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        require_versions(connection)
        context.configure(
            connection=connection,
            target_metadata=target_metadata,
            include_name=_is_declared,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()

"""Which versions of the database's server the schema and the queries need."""

import re

from sqlalchemy import Connection, text

from shared.core.settings import SettingsError

POSTGRES = 15
PGVECTOR = (0, 8)
"""Its `hnsw.iterative_scan` came with 0.8. An earlier one takes that setting for a name to be
remembered, until it is loaded: a connection's first search works, and all later ones fail."""


def require_versions(connection: Connection) -> None:
    """Refuse, before anything is changed, what would fail later and in other words.

    Raises:
        SettingsError: Postgres or pgvector is too old.
    """
    postgres, pgvector = connection.execute(
        text(
            "SELECT current_setting('server_version_num')::int / 10000, (SELECT default_version"
            " FROM pg_available_extensions WHERE name = 'vector')"  # that of the library
        )
    ).one()
    connection.rollback()  # each migration has a transaction of its own
    if postgres < POSTGRES:
        raise SettingsError(f"Darkroom needs PostgreSQL {POSTGRES} or newer; this is {postgres}")
    found = re.match(r"(\d+)\.(\d+)", pgvector or "")
    if found is not None and (int(found[1]), int(found[2])) < PGVECTOR:
        needed = ".".join(map(str, PGVECTOR))
        raise SettingsError(f"Darkroom needs pgvector {needed} or newer; this is {pgvector}")

"""The operator's command line for tenants and API keys: `python -m deploy.admin`."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from shared.keys import new_key, parse_key
from shared.settings import get_settings, with_driver
from shared.tenancy import statements

EVERY_SCOPE = ("jobs", "images", "search", "batches", "webhooks", "admin")
LOCAL_TENANT = "local"


def register_key(
    database_url: str,
    key: str,
    *,
    tenant: str = LOCAL_TENANT,
    name: str = "local stack",
    scopes: Sequence[str] = EVERY_SCOPE,
) -> None:
    """Make the database know a key that exists already; doing it twice changes nothing.

    Raises:
        ValueError: the text is not a well-formed key.
    """
    parsed = parse_key(key)
    if parsed is None:
        raise ValueError("not a well-formed API key")
    with _session(database_url) as session:
        if session.scalars(statements.find_key(parsed.id)).one_or_none() is not None:
            return
        tenant_id = session.scalars(statements.ensure_tenant(tenant)).one()
        row = {
            "id": parsed.id,
            "tenant_id": tenant_id,
            "name": name,
            "secret_hash": parsed.secret_hash,
            "scopes": list(scopes),
        }
        session.execute(statements.insert_key(row))


def create_key(database_url: str, *, tenant: str, name: str, scopes: Sequence[str]) -> str:
    """A new key of a tenant, made on first use; the key is shown once and never stored."""
    key = new_key().key
    register_key(database_url, key, tenant=tenant, name=name, scopes=scopes)
    return key


@contextmanager
def _session(database_url: str) -> Iterator[Session]:
    engine = create_engine(with_driver(database_url))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


def main() -> int:
    """Parse the command line and run one command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.admin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create-key", help="make a key and print it, once")
    create.add_argument("--tenant", required=True)
    create.add_argument("--name", required=True)
    create.add_argument("--scope", action="append", choices=EVERY_SCOPE, dest="scopes")
    arguments = parser.parse_args()
    url = get_settings().database_url.get_secret_value()
    print(
        create_key(
            url,
            tenant=arguments.tenant,
            name=arguments.name,
            scopes=arguments.scopes or EVERY_SCOPE,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

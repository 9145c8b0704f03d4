"""A job_store without a dispatcher beside it: a database of these tests' own."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from shared.core import tenants
from shared.core.database import session_factory
from shared.core.settings import with_driver
from tests.conftest import MIGRATED


@pytest.fixture(scope="session")
def quiet_url(servers: EmbeddedServers) -> Iterator[str]:
    """The URL of a migrated database that no process of the system uses."""
    yield with_driver(servers.postgres.create_database("quiet_job_store", template=MIGRATED))
    servers.postgres.drop_database("quiet_job_store")


@pytest.fixture(scope="session")
def job_store(quiet_url: str) -> Iterator[sessionmaker[Session]]:
    """Sessions on it."""
    engine = create_engine(quiet_url, pool_size=20)
    yield session_factory(engine)
    engine.dispose()


@pytest.fixture
def tenant(job_store: sessionmaker[Session]) -> UUID:
    """A tenant."""
    with job_store.begin() as session:
        return session.scalars(tenants.ensure_tenant("job_store tests")).one()

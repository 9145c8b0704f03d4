"""What tests of batches share."""

from uuid import UUID

import pytest
from sqlalchemy.orm import Session, sessionmaker

from shared.core import tenants


@pytest.fixture(scope="session")
def tenant(database: sessionmaker[Session]) -> UUID:
    """The tenant of the key that the API's client has."""
    with database.begin() as session:
        return session.scalars(tenants.ensure_tenant("tests")).one()

"""What tests of batches share."""

from uuid import UUID

import pytest
from sqlalchemy.orm import Session, sessionmaker

from shared.tenancy import statements as tenancy


@pytest.fixture(scope="session")
def tenant(database: sessionmaker[Session]) -> UUID:
    """The tenant of the key that the API's client has."""
    with database.begin() as session:
        return session.scalars(tenancy.ensure_tenant("tests")).one()

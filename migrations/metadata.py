"""Every table of the project, gathered for Alembic and for the schema test."""

import shared.batches.models
import shared.fleet.models
import shared.gallery.models
import shared.jobs.models
import shared.tenancy.models
import shared.webhooks.models  # noqa: F401  # imported so that the tables register
from shared.tables import Base

target_metadata = Base.metadata

"""Every table of the project, gathered for Alembic and for the schema test."""

import shared.admin.models
import shared.batches.models
import shared.core.tenants
import shared.images.models
import shared.jobs.models
import shared.webhooks.models  # noqa: F401  # imported so that the tables register
from shared.core.database import Base

target_metadata = Base.metadata

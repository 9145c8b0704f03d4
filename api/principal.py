"""Who acts: the key behind a request, its tenant, and what it may do."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.quotas import NO_QUOTAS, Quotas
from shared.tenancy.scopes import allows


@dataclass(frozen=True, slots=True)
class Principal:
    """The key behind a request and the tenant it acts for."""

    tenant_id: UUID
    key_id: str
    scopes: frozenset[str]
    quotas: Quotas = NO_QUOTAS
    rate_is_known: bool = True
    """False: the key has a request rate that cannot be checked, so it may not spend."""
    expires_at: datetime | None = None
    """When the key ends by itself."""

    def may(self, scope: str) -> bool:
        """Whether the scopes cover `resource:read` or `resource:write`."""
        return allows(self.scopes, scope)

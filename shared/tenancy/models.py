"""Tables of tenants and API keys."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables import Base, CreatedAt, Id, Instant


class Tenant(Base):
    """One team. Every row a client can see belongs to exactly one tenant."""

    __tablename__ = "tenants"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """A credential of a tenant. Only the hash of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    """The public part of the key, by which it is looked up."""
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    """SHA-256 of the secret, which has enough entropy to need no slow hash."""
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[Instant | None]
    expires_at: Mapped[Instant | None]
    revoked_at: Mapped[Instant | None]
    quotas: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    """A `shared.quotas.Quotas`; null: none."""

    def is_live(self, now: datetime) -> bool:
        """Neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)

"""What one API key may use."""

from shared.quotas.model import NO_QUOTAS, Quotas

__all__ = ["NO_QUOTAS", "Quotas"]

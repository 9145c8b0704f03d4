"""Keys and what they have used."""

from dataclasses import dataclass, field
from datetime import datetime

from darkroom.decoding import Document


@dataclass(frozen=True, kw_only=True)
class Quotas(Document):
    """Limits of a key; what is None is not limited."""

    requests_per_minute: int | None = None
    queued_cost: int | None = None
    concurrent_jobs: int | None = None
    gpu_seconds_per_day: float | None = None
    upload_bytes: int | None = None
    max_pixels: int | None = None
    models: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Key(Document):
    """An API key without its secret."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    quotas: Quotas | None = None
    created_at: datetime
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class NewKey(Key):
    """A key just made; `key` is shown this once."""

    key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Allowance(Document):
    """One limit of the key. `limit` and `left` are None where there is none."""

    limit: float | None = None
    used: float | None = None
    reserved: float | None = None
    """What unfinished jobs are estimated to take."""
    left: float | None = None
    resets_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Usage(Document):
    """What the key may use and has used."""

    key_id: str
    requests_per_minute: Allowance
    queued_cost: Allowance
    concurrent_jobs: Allowance
    gpu_seconds_per_day: Allowance
    upload_bytes: Allowance = Allowance()
    max_pixels: int | None = None
    models: tuple[str, ...] | None = None

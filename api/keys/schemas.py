"""What clients send and get for API keys."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from api.problems import RuleBroken
from api.request_model import RequestModel
from api.wire import AnswerModel, UtcTime
from shared.quotas import Quotas

ScopeName = Literal[
    "jobs",
    "images",
    "search",
    "batches",
    "webhooks",
    "admin",
    "jobs:read",
    "images:read",
    "search:read",
    "batches:read",
    "webhooks:read",
    "admin:read",
    "operator",
]


def _plain(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise RuleBroken("not_printable", "It must have visible characters and no control ones.")
    return text


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain)]


class KeyRequest(RequestModel):
    """A key to be made."""

    name: Name = Field(description="What it is for; shown in lists.")
    tenant: Name | None = Field(
        default=None,
        description="Another tenant than your own, made on first use; needs the scope operator.",
    )
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=16)] = Field(
        description="`jobs` reads and writes, `jobs:read` reads; `admin` is all of a tenant's."
    )
    # Lax: JSON has no times, and strict mode would refuse their text.
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = Field(
        default=None,
        description="RFC 3339 with an offset, not after the end of the key that you send. Null: "
        "it ends with that key, or never.",
    )
    quotas: Quotas | None = Field(default=None, description="Null: no limits.")


class Key(AnswerModel):
    """An API key without its secret."""

    id: str = Field(description="The public part of the key.")
    name: str
    """What it is for, as its maker put it."""
    tenant: str
    """Name of the tenant that it acts for."""
    scopes: list[str]
    """What it may do, such as `jobs` or `images:read`."""
    quotas: Quotas | None
    """Its limits. Null: none."""
    created_at: UtcTime
    """When it was made."""
    last_used_at: UtcTime | None = Field(description="To the minute.")
    expires_at: UtcTime | None
    """From then on it is refused. Null: it does not expire."""
    revoked_at: UtcTime | None
    """When it was revoked. Null: it was not."""


class NewKey(Key):
    """A key just made."""

    key: str = Field(description="Shown once; only its hash is kept.")


def is_future(moment: datetime | None, now: datetime) -> bool:
    """Whether a key that ends then is of any use."""
    return moment is None or moment > now


KEY_EXAMPLES: dict[str, Any] = {
    "for another team": {"name": "their backend", "tenant": "team-b", "scopes": ["jobs", "images"]},
    "with quotas": {
        "name": "demo page",
        "scopes": ["jobs", "images:read"],
        "expires_at": "2099-01-01T00:00:00Z",
        "quotas": {"requests_per_minute": 120, "concurrent_jobs": 4, "gpu_seconds_per_day": 600.0},
    },
}

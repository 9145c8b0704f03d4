"""Who acts: the key behind a request, its tenant and scopes; and the keys seen lately."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID
from weakref import WeakValueDictionary

from shared.core.quotas import NO_QUOTAS, Quotas
from shared.core.tenants import ApiKey, allows


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


_CACHE_SECONDS = 5.0
"""The longest a revoked key keeps working in one process."""

_CACHE_SIZE = 4096


class KeyCache:
    """Keys looked up lately, so that a submission need not ask the database who it is from."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[float, ApiKey]] = OrderedDict()
        self._lookups: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._unknown: OrderedDict[str, float] = OrderedDict()

    def lookup(self, key_id: str) -> asyncio.Lock:
        """Held while a key is looked up: of many requests of one key one asks the database."""
        return self._lookups.setdefault(key_id, asyncio.Lock())

    def get(self, key_id: str) -> ApiKey | None:
        """The key, if it was looked up within the last seconds."""
        entry = self._entries.get(key_id)
        if entry is None or entry[0] < time.monotonic():
            return None
        return entry[1]

    def was_known(self, key_id: str) -> bool:
        """Whether it was found lately, though perhaps longer ago than `get` answers from."""
        return key_id in self._entries

    def is_unknown(self, key_id: str) -> bool:
        """Whether the database had no such key within the last seconds."""
        return self._unknown.get(key_id, 0.0) > time.monotonic()

    def put_unknown(self, key_id: str) -> None:
        """Remember that there is no such key; the oldest make room."""
        self._unknown[key_id] = time.monotonic() + _CACHE_SECONDS
        self._unknown.move_to_end(key_id)
        while len(self._unknown) > _CACHE_SIZE:
            self._unknown.popitem(last=False)

    def put(self, key: ApiKey) -> None:
        """Remember a key; the oldest make room."""
        self._entries[key.id] = (time.monotonic() + _CACHE_SECONDS, key)
        self._entries.move_to_end(key.id)
        while len(self._entries) > _CACHE_SIZE:
            self._entries.popitem(last=False)

    def evict(self, key_id: str) -> None:
        """Drop what is known of a key that this process has just revoked, changed or made."""
        self._entries.pop(key_id, None)
        self._unknown.pop(key_id, None)

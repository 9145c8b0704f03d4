"""How many prompts a tenant has and which words are common among them, remembered for a while."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from shared.search import census, statements

_SECONDS = 30.0
_COUNTED = 200_000
"""Prompts of a tenant up to which they are counted (some 15 ms); beyond, the system's are taken."""
_REMEMBERED = 256
"""Tenants per process, each with some hundred words, 1,000 at most."""


@dataclass(frozen=True)
class Census:
    """What was counted of a tenant's prompts."""

    prompts: int
    """Exactly up to 200,000; estimated from the whole system's beyond."""
    many: bool
    """Whether there are more than can be ordered exactly."""
    common: Mapping[str, int]
    """Estimated: how many prompts hold each common word. Empty where every word is counted."""


class Censuses:
    """The censuses of a process's tenants. Those of few prompts, which change fast, are not kept:
    a word that was used a moment ago must be found.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, tuple[float, Census]] = OrderedDict()

    async def of(self, session: AsyncSession, tenant_id: UUID) -> Census:
        """The tenant's, half a minute old at most. `session` is within the tenant's wall."""
        known = self._known.get(tenant_id)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        taken = await session.execute(census.take_census(tenant_id, _COUNTED + 1))
        mine, of_system, sampled, hits = taken.one()
        many = mine > statements.EXACT_UP_TO
        prompts = max(mine, int(of_system)) if mine > _COUNTED else mine
        common = {word: round(count / sampled * prompts) for word, count in hits.items()}
        made = Census(prompts, many, common)
        if sampled == census.SAMPLE:
            self._known[tenant_id] = (time.monotonic() + _SECONDS, made)
            self._known.move_to_end(tenant_id)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return made

"""Answers that stay open: how many a key may hold, and that they end with their key."""

import random
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Literal

from api.auth import find_live_key
from api.deps import Resources
from api.principal import Principal
from api.problems import Problem


class OpenAnswers:
    """The answers of one kind that a process holds open, and whose they are.

    A key may hold `per_key`, and never more than there are places left: a few busy keys fill the
    process only in part, so that a new one finds room.
    """

    def __init__(
        self, refusal: Literal["too_many_streams", "too_many_waits"], per_key: int, at_most: int
    ) -> None:
        self._refusal = refusal
        self._per_key = per_key
        self._at_most = at_most
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, key_id: str) -> Iterator[None]:
        """Count one against its key for as long as it lasts.

        Raises:
            Problem: 429, of the code that this was made with.
        """
        if self._held[key_id] >= min(self._per_key, self._at_most - self._held.total()):
            # Not all who are refused together are to come back together.
            raise Problem(self._refusal, headers={"Retry-After": str(random.randint(5, 15))})
        self._held[key_id] += 1
        try:
            yield
        finally:
            self._held[key_id] -= 1
            self._held += Counter()  # forgets keys that hold nothing


async def while_key_lives(
    resources: Resources, principal: Principal, pieces: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The pieces of an answer, until its key is revoked or expires: nothing 5 s later."""
    async with aclosing(pieces):
        async for piece in pieces:
            if not await _may_go_on(resources, principal):
                return
            yield piece


async def _may_go_on(resources: Resources, principal: Principal) -> bool:
    try:
        return await find_live_key(resources, principal.key_id) is not None
    except Problem:
        return True  # Postgres is away: who was let in may read on.

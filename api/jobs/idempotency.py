"""Idempotency keys: a submission that is sent again gets the first one's answer, byte for byte."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Header, Response
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.errors import Problem, problems
from api.core.principal import Principal
from shared.jobs.queries import accept as queries

_KEY = re.compile(r"[\x20-\x7e]{1,255}")


@problems("malformed_idempotency_key", "idempotency_key_reuse")
async def _read_key(
    idempotency_key: Annotated[
        str | None,
        Header(description="1 to 255 printable characters; a retry gets the original answer."),
    ] = None,
) -> str | None:
    if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
        raise Problem("malformed_idempotency_key")
    return idempotency_key


IdempotencyKey = Annotated[str | None, Depends(_read_key)]


@dataclass(frozen=True)
class Answer:
    """The answer to a submission, as the bytes that a replay gets again."""

    body: str
    location: str
    is_replay: bool = False

    def stored(self) -> dict[str, str]:
        """What is kept for whoever sends the request again."""
        return {"body": self.body, "location": self.location}

    def response(self, poll_after: str, headers: dict[str, str] | None = None) -> Response:
        """202 with the job or batch; clients may ask again after `poll_after` seconds."""
        named = {"Location": self.location, "Retry-After": poll_after, **(headers or {})}
        if self.is_replay:
            named["Idempotency-Replayed"] = "true"
        return Response(self.body, 202, named, "application/json")


@dataclass(frozen=True)
class IdempotentRequest:
    """A submission that may have been sent before."""

    key: str | None
    fingerprint: bytes
    """What makes two requests the same."""
    joins: timedelta | None = None
    """How old an answer may be to be replayed; zero: this request is always a new one. None: as
    long as it is kept."""

    def columns(self) -> dict[str, str]:
        """In addition to those of the job, to take the key with it; none without a key."""
        if self.key is None:
            return {}
        return {"idempotency_key": self.key, "request_sha256": self.fingerprint.hex()}

    async def find_earlier(self, resources: Resources, principal: Principal) -> Answer | None:
        """As `find_answer`, in a transaction of its own: before work that a retry should not
        repeat, or that fails now."""
        if self.key is None or self.joins == timedelta(0):
            return None
        async with resources.tenant_transaction(principal) as session:
            return await self.find_answer(session, principal)

    async def find_answer(self, session: AsyncSession, principal: Principal) -> Answer | None:
        """The answer that the key got before; None for a new one, or without one.

        Raises:
            Problem: 422, the key was used for another request.
        """
        if self.key is None or self.joins == timedelta(0):
            return None
        find = queries.find_idempotent_answer(principal.tenant_id, self.key, self.joins)
        known = await session.scalars(find)
        record = known.one_or_none()
        if record is None:
            return None
        if record.request_sha256 != self.fingerprint:
            raise Problem("idempotency_key_reuse", "Another request was made with this key.")
        return Answer(record.response["body"], record.response["location"], is_replay=True)

    async def reserve(self, session: AsyncSession, principal: Principal) -> Answer | None:
        """Take the key in the submission's transaction; or the answer that it got before.

        Raises:
            Problem: 422, the key was used for another request.
        """
        if self.key is None:
            return None
        taken = queries.reserve_idempotency_key(
            principal.tenant_id, self.key, self.fingerprint, self.joins
        )
        if (await session.execute(taken)).one_or_none() is not None:
            return None
        return await self.find_answer(session, principal)

    async def keep(self, session: AsyncSession, principal: Principal, answer: Answer) -> None:
        """Keep the answer for whoever sends the request again."""
        if self.key is None:
            return
        store = queries.store_idempotent_answers(principal.tenant_id, {self.key: answer.stored()})
        await (await session.connection()).exec_driver_sql(*store)


ACCEPTED_HEADERS = {
    "Location": {"schema": {"type": "string"}, "description": "The job or the batch."},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Poll after."},
    "Idempotency-Replayed": {
        "schema": {"type": "boolean"},
        "description": "true: this is the original answer to this key.",
    },
}
"""For the documentation of a 202."""

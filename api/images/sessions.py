"""The rules of sessions: list them, look at one, go through its history."""

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.errors import Problem, not_found
from api.core.fairness import built
from api.core.principal import Principal
from api.core.serialization import Page, decode_cursor, encode_cursor
from api.images import service
from api.images.schemas import HistoryImage, Session, SessionLinks
from api.jobs.schemas import REPRODUCES
from api.search import service as search_service
from api.search.service import Asked
from shared.images import models, queries

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_TIME_BYTES = 8


_CHECKSUM = 8


def encode(created_at: datetime, session_id: str, *scope: object) -> str:
    """An opaque text, bound by a checksum to `scope`."""
    microseconds = (created_at - _EPOCH) // timedelta(microseconds=1)
    raw = microseconds.to_bytes(_TIME_BYTES) + session_id.encode()
    return base64.urlsafe_b64encode(raw + _checksum(raw, scope)).decode().rstrip("=")


def decode(text: str, *scope: object) -> tuple[datetime, str]:
    """The position behind the text.

    Raises:
        Problem: it is damaged, forged, or of another tenant.
    """
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        body, checksum = raw[:-_CHECKSUM], raw[-_CHECKSUM:]
        if len(body) <= _TIME_BYTES or checksum != _checksum(body, scope):
            raise ValueError("of another list")
        microseconds = int.from_bytes(body[:_TIME_BYTES])
        session_id = body[_TIME_BYTES:].decode()
        if "\0" in session_id:
            raise ValueError("no session has such an id")
        return _EPOCH + timedelta(microseconds=microseconds), session_id
    except (binascii.Error, ValueError, OverflowError):
        raise Problem("malformed_cursor") from None


def _checksum(raw: bytes, scope: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(raw + repr(scope).encode(), digest_size=_CHECKSUM).digest()


async def list_page(
    resources: Resources, principal: Principal, limit: int, after: str | None
) -> Page[Session]:
    """One page of a tenant's sessions, the last used first."""
    scope = ("sessions by last use", principal.tenant_id)
    before = decode(after, *scope) if after is not None else None
    async with resources.tenant_transaction(principal) as session:
        statement = queries.list_sessions(principal.tenant_id, limit + 1, before)
        found = (await session.execute(statement)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=[_present(resources, row) for row in page],
        has_more=has_more,
        next_cursor=encode(page[-1][5], page[-1][0], *scope) if has_more else None,
    )


async def get(resources: Resources, principal: Principal, session_id: str) -> Session:
    """A tenant's session.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        statement = queries.get_session(principal.tenant_id, session_id)
        row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise not_found("session")
    return _present(resources, row)


async def list_images(
    resources: Resources, principal: Principal, session_id: str, limit: int, after: str | None
) -> Page[HistoryImage]:
    """One page of a session's images, newest first, without what `reproduce` made again.

    Raises:
        Problem: 404 for a session that is not there; 422 for a cursor of another list.
    """
    scope = ("session images", principal.tenant_id, session_id)
    before = decode_cursor(after, *scope) if after is not None else None
    async with (
        resources.listing(principal, limit),
        resources.tenant_transaction(principal) as session,
    ):
        await _require(session, principal, session_id)
        statement = queries.list_images(
            principal.tenant_id, session_id, limit + 1, before, without=REPRODUCES
        )
        found = (await session.scalars(statement)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=await built(lambda row: _present_image(resources, row, None), page),
        has_more=has_more,
        next_cursor=encode_cursor(page[-1].id, *scope) if has_more else None,
    )


async def search_images(
    resources: Resources, principal: Principal, asked: Asked
) -> Page[HistoryImage]:
    """One page of the images of the session that the filters name, best first.

    Raises:
        Problem: as `list_images`, and 503 when the text cannot be embedded.
    """
    async with resources.tenant_transaction(principal) as session:
        await _require(session, principal, asked.filters.session_id or "")
    found, next_cursor = await search_service.find(resources, principal, asked)
    return Page(
        data=await built(lambda entry: _present_image(resources, entry.image, entry.score), found),
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
    )


async def _require(session: AsyncSession, principal: Principal, session_id: str) -> None:
    statement = queries.find_session(principal.tenant_id, session_id)
    if (await session.scalars(statement)).one_or_none() is None:
        raise not_found("session")


def _present(resources: Resources, row: Any) -> Session:
    session_id, created_at, made, jobs, last_image_at, _last_used = row
    here = f"{resources.settings.public_url.rstrip('/')}/v1/sessions/{session_id}"
    return Session(
        id=session_id,
        created_at=created_at,
        jobs=jobs,
        images=made,
        last_image_at=last_image_at,
        links=SessionLinks(self=here, images=f"{here}/images"),
    )


def _present_image(resources: Resources, row: models.Image, score: float | None) -> HistoryImage:
    return HistoryImage(**service.fields(resources, row), score=score)

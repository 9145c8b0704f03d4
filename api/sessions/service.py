"""The rules of sessions: list them, look at one, go through its history."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from api.deps import Resources
from api.fairness import built
from api.images import service as images
from api.jobs.schemas import REPRODUCES
from api.principal import Principal
from api.problems import not_found
from api.search import service as searching
from api.search.service import Asked
from api.sessions import cursor
from api.sessions.schemas import HistoryImage, Session, SessionLinks
from api.wire import Page, decode_cursor, encode_cursor
from shared.gallery import history
from shared.gallery import models as rows


async def list_page(
    resources: Resources, principal: Principal, limit: int, after: str | None
) -> Page[Session]:
    """One page of a tenant's sessions, the last used first."""
    scope = ("sessions by last use", principal.tenant_id)
    before = cursor.decode(after, *scope) if after is not None else None
    async with resources.tenant_transaction(principal) as session:
        statement = history.list_sessions(principal.tenant_id, limit + 1, before)
        found = (await session.execute(statement)).all()
    page, has_more = found[:limit], len(found) > limit
    return Page(
        data=[_present(resources, row) for row in page],
        has_more=has_more,
        next_cursor=cursor.encode(page[-1][5], page[-1][0], *scope) if has_more else None,
    )


async def get(resources: Resources, principal: Principal, session_id: str) -> Session:
    """A tenant's session.

    Raises:
        Problem: 404.
    """
    async with resources.tenant_transaction(principal) as session:
        statement = history.get_session(principal.tenant_id, session_id)
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
        statement = history.list_images(
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
    found, next_cursor = await searching.find(resources, principal, asked)
    return Page(
        data=await built(lambda entry: _present_image(resources, entry.image, entry.score), found),
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
    )


async def _require(session: AsyncSession, principal: Principal, session_id: str) -> None:
    statement = history.find_session(principal.tenant_id, session_id)
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


def _present_image(resources: Resources, row: rows.Image, score: float | None) -> HistoryImage:
    return HistoryImage(**images.fields(resources, row), score=score)

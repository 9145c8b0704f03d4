"""The rules of sessions: list, get."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from api.context import Resources
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest, seal, unseal
from api.images.schemas import Session, SessionLinks
from shared.images import queries

_ID_BYTES = 16


def encode(newest_job: UUID, session_id: str, *scope: object) -> str:
    """The cursor behind the session with that newest job."""
    return seal(newest_job.bytes + session_id.encode(), *scope)


def decode(cursor: str, *scope: object) -> tuple[UUID, str]:
    """The position behind a cursor.

    Raises:
        Problem: it is damaged, forged, or of another tenant.
    """
    raw = unseal(cursor, *scope)
    try:
        session_id = raw[_ID_BYTES:].decode()
        if not session_id or "\0" in session_id:
            raise ValueError("no session has such an id")
        return UUID(bytes=raw[:_ID_BYTES]), session_id
    except ValueError:
        raise Problem("malformed_cursor") from None


async def list_page(
    resources: Resources, principal: Principal, paging: PageRequest
) -> Page[Session]:
    """One page of a tenant's sessions, the last used first."""
    tenant = principal.tenant_id
    scope = ("sessions by newest job", tenant)
    before = decode(paging.after, *scope) if paging.after is not None else None
    async with resources.tenant_transaction(principal) as session:
        rows: Sequence[Any] = ()
        if await session.scalar(queries.has_many_sessions(tenant)):
            recent = await session.scalars(queries.list_recent_sessions(tenant, before))
            statement = queries.list_sessions(tenant, paging.limit + 1, before, among=recent.all())
            rows = (await session.execute(statement)).all()
        if len(rows) <= paging.limit:
            statement = queries.list_sessions(tenant, paging.limit + 1, before)
            rows = (await session.execute(statement)).all()
    page, has_more = rows[: paging.limit], len(rows) > paging.limit
    return Page(
        data=[_serialize(resources, row) for row in page],
        has_more=has_more,
        next_cursor=encode(page[-1][6], page[-1][0], *scope) if has_more else None,
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
    return _serialize(resources, row)


def _serialize(resources: Resources, row: Any) -> Session:
    session_id, created_at, images, jobs, last_image_at, last_used_at, _newest_job = row
    here = f"{resources.settings.public_url}/v1/sessions/{session_id}"
    return Session(
        id=session_id,
        created_at=created_at,
        jobs=jobs,
        images=images,
        last_image_at=last_image_at,
        last_used_at=last_used_at,
        links=SessionLinks(self=here, images=f"{here}/images"),
    )

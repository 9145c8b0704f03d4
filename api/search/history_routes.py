"""A session's history: HTTP and rules; newest first, or by meaning."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.context import Res, Resources, require_row
from api.core.auth import ImagesRead
from api.core.errors import problems
from api.core.fairness import built
from api.core.principal import Principal
from api.core.serialization import Page, PageRequest
from api.images import service as image_service
from api.images.routes import LongPaging, SessionName, known_session
from api.search import service
from api.search.routes import Text
from api.search.schemas import HistoryImage
from api.search.service import SearchRequest
from shared.images import models, queries
from shared.search.ranking import Filters

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.get(
    "/{session_id}/images",
    operation_id="sessions.images",
    summary="List or search a session's images",
)
@problems("embedding_unavailable")
async def list_images(
    *,
    resources: Res,
    principal: ImagesRead,
    session_id: SessionName,
    q: Annotated[
        Text | None, Query(description="Search the session by meaning instead of listing it.")
    ] = None,
    paging: LongPaging,
) -> Page[HistoryImage]:
    """The session's history: newest first, or with `q` by meaning, best first."""
    name = known_session(session_id)
    if q is None:
        return await _list_images(resources, principal, name, paging)
    request = SearchRequest(q, Filters(session_id=name), paging.limit, paging.after)
    return await _search_images(resources, principal, request)


async def _list_images(
    resources: Resources, principal: Principal, session_id: str, paging: PageRequest
) -> Page[HistoryImage]:
    """One page of a session's images, newest first, without reproductions.

    Raises:
        Problem: 404 for a session that is not there; 422 for a cursor of another list.
    """
    scope = ("session images", principal.tenant_id, session_id)
    before = paging.position(*scope)
    async with resources.list_transaction(principal, paging.limit) as session:
        known = queries.find_session(principal.tenant_id, session_id)
        await require_row(session, known, "session")
        statement = queries.list_images(principal.tenant_id, session_id, paging.limit + 1, before)
        results = (await session.scalars(statement)).all()
    return await paging.page(results, lambda row: _serialize_image(resources, row, None), *scope)


async def _search_images(
    resources: Resources, principal: Principal, request: SearchRequest
) -> Page[HistoryImage]:
    """One page of the images of the session that the filters name, best first.

    Raises:
        Problem: as `_list_images`, and 503 when the text cannot be embedded.
    """
    async with resources.tenant_transaction(principal) as session:
        known = queries.find_session(principal.tenant_id, request.filters.session_id or "")
        await require_row(session, known, "session")
    results, next_cursor = await service.find(resources, principal, request)
    return Page(
        data=await built(
            lambda entry: _serialize_image(resources, entry.image, entry.score), results
        ),
        has_more=next_cursor is not None,
        next_cursor=next_cursor,
    )


def _serialize_image(resources: Resources, row: models.Image, score: float | None) -> HistoryImage:
    return HistoryImage.of(row, **image_service.fields(resources, row), score=score)

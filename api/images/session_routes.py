"""HTTP of sessions."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.context import Res
from api.core.auth import ImagesRead
from api.core.errors import responses
from api.core.serialization import Page, PageLimit, json_answer
from api.images import sessions
from api.images.routes import SessionName, known_session
from api.images.schemas import HistoryImage, Session
from api.search.routes import After, Text
from api.search.service import Asked
from shared.search.ranking import Filters

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


@router.get(
    "",
    operation_id="sessions.list",
    summary="List sessions",
    response_class=Response,
    responses={
        200: {"model": Page[Session]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_sessions(
    resources: Res, principal: ImagesRead, limit: PageLimit = 50, after: After = None
) -> Response:
    """Your tenant's sessions, the last used first: by their newest job."""
    return json_answer(await sessions.list_page(resources, principal, limit, after))


@router.get(
    "/{session_id}",
    operation_id="sessions.get",
    summary="Get a session",
    response_class=Response,
    responses={
        200: {"model": Session},
        **responses("insufficient_scope", "not_found", "validation_failed", "database_unavailable"),
    },
)
async def get(resources: Res, principal: ImagesRead, session_id: SessionName) -> Response:
    """How many jobs and images it has."""
    return json_answer(await sessions.get(resources, principal, known_session(session_id)))


@router.get(
    "/{session_id}/images",
    operation_id="sessions.images",
    summary="List or search a session's images",
    response_class=Response,
    responses={
        200: {"model": Page[HistoryImage]},
        **responses(
            "insufficient_scope",
            "not_found",
            "validation_failed",
            "malformed_cursor",
            "database_unavailable",
            "embedding_unavailable",
        ),
    },
)
async def list_images(
    *,
    resources: Res,
    principal: ImagesRead,
    session_id: SessionName,
    q: Annotated[
        Text | None, Query(description="Search the session by meaning instead of listing it.")
    ] = None,
    limit: PageLimit = 50,
    after: After = None,
) -> Response:
    """The session's history: newest first, or with `q` by meaning, best first."""
    name = known_session(session_id)
    if q is None:
        page = await sessions.list_images(resources, principal, name, limit, after)
    else:
        asked = Asked(q, Filters(session_id=name), limit, after)
        page = await sessions.search_images(resources, principal, asked)
    return json_answer(page)

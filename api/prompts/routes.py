"""HTTP of recommendations."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.auth import SearchRead
from api.deps import Res
from api.problems import responses
from api.prompts import service
from api.prompts.schemas import Recommendations
from api.search.parameters import MaybeText, Name
from api.wire import json_answer

router = APIRouter(prefix="/v1/prompts", tags=["prompts"])


@router.get(
    "/recommendations",
    operation_id="prompts.recommendations",
    summary="Recommend prompts",
    response_class=Response,
    responses={
        200: {"model": Recommendations},
        **responses(
            "insufficient_scope",
            "validation_failed",
            "database_unavailable",
            "embedding_unavailable",
        ),
    },
)
async def recommendations(
    *,
    resources: Res,
    principal: SearchRead,
    q: MaybeText = None,
    session_id: Annotated[
        Name | None, Query(description="Recommend for this session; leave out what it has used.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=50, description="Prompts, 1 to 50.")] = 8,
) -> Response:
    """Prompts near to `q`, which may be half typed, or else to what the session made last.

    Ranked by nearness and by what became of their pictures; without what the session has used.
    Where you have too few, shipped ones fill up, marked `starter`.
    """
    asked = service.Asked(q, session_id, limit)
    return json_answer(await service.recommend_prompts(resources, principal, asked))

"""HTTP of search."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from api.auth import SearchRead
from api.bodies import FILE_SCHEMA, body_schema, json_body, read_file
from api.deps import Res
from api.problems import Problem, responses
from api.search import likeness, service
from api.search.parameters import (
    After,
    AskedFilters,
    Diversity,
    HitLimit,
    MinScore,
    RankBy,
    Text,
    needs_query,
)
from api.search.schemas import Hit, LikeThis
from api.wire import Page, json_answer
from shared.search.question import Rank

router = APIRouter(prefix="/v1/search", tags=["search"])

_PROBLEMS = (
    "insufficient_scope",
    "validation_failed",
    "malformed_cursor",
    "database_unavailable",
    "embedding_unavailable",
)


def _body() -> dict[str, Any]:
    """OpenAPI of a body in either of two forms."""
    described = body_schema(LikeThis, {"by id": {"image_id": "img_01jd4zk3v8e0x9m5q7r2t6w8ya"}})
    described["requestBody"]["content"] |= FILE_SCHEMA["requestBody"]["content"]
    return described


@router.get(
    "",
    operation_id="search.query",
    summary="Search by meaning",
    response_class=Response,
    responses={200: {"model": Page[Hit]}, **responses(*_PROBLEMS)},
)
async def query(
    *,
    resources: Res,
    principal: SearchRead,
    q: Annotated[
        Text | None,
        Query(description="In any language; without it the filtered images are listed."),
    ] = None,
    filters: AskedFilters,
    min_score: MinScore = None,
    rank: RankBy = Rank.RELEVANCE,
    diversity: Diversity = False,
    limit: HitLimit = 20,
    after: After = None,
) -> Response:
    """Your tenant's pictures whose prompts mean what `q` says, best first.

    An exact phrase or a rare word goes before a vague neighbour. What is like nothing that was
    ever made finds nothing. Without `q`: all that the filters leave, newest first, without scores.
    `metadata.<key>=<value>` filters by the job's metadata.
    """
    if q is None:
        needs_query(min_score=min_score is not None, rank=rank is not Rank.RELEVANCE)
        return json_answer(await service.newest(resources, principal, filters, limit, after))
    asked = service.Asked(q, filters, limit, after, min_score, rank, diversity)
    return json_answer(await service.search(resources, principal, asked))


async def read_likeness(request: Request, principal: SearchRead) -> Any:
    """The file of a multipart body, or the JSON body."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await read_file(request, principal)
    try:
        return await json_body(LikeThis)(request, principal)
    except Problem as problem:
        if problem.kind.code != "unsupported_media_type":
            raise
        either = "Send application/json with an image_id, or multipart/form-data with a file."
        raise Problem("unsupported_media_type", either) from None


@router.post(
    "",
    operation_id="search.like",
    summary="Search by a picture",
    response_class=Response,
    responses={
        200: {"model": Page[Hit]},
        **responses(
            *_PROBLEMS,
            "malformed_request",
            "not_found",
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "image_refused",
            "prompt_unknown",
            "decoder_unavailable",
            "storage_unavailable",
        ),
    },
    openapi_extra=_body(),
)
async def like(
    *,
    resources: Res,
    principal: SearchRead,
    given: Annotated[Any, Depends(read_likeness)],
    filters: AskedFilters,
    min_score: MinScore = None,
    diversity: Diversity = False,
    limit: HitLimit = 20,
    after: After = None,
) -> Response:
    """Pictures like this one, without the picture itself.

    Give `image_id` in JSON, or a picture in the multipart field `file`. Where the operator has
    configured an image-text model, pixels are compared and any picture will do. Otherwise prompts
    are: the file must have been made by Darkroom, so that its prompt is on record or in its
    receipt. Filters and pages are query parameters, as with GET.
    """
    asked = service.Asked("", filters, limit, after, min_score, diversity=diversity)
    if isinstance(given, LikeThis):
        page = await likeness.like_image(resources, principal, given.image_id, asked)
    else:
        page = await likeness.like_file(resources, principal, given, asked)
    return json_answer(page)

"""HTTP of search and recommendations, and their query parameters."""

import unicodedata
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from api.context import Res
from api.core.auth import SearchRead
from api.core.bodies import (
    BODY_PROBLEMS,
    FILE_SCHEMA,
    body_schema,
    json_body,
    media_type_of,
    read_file,
)
from api.core.errors import FieldError, Problem, problems
from api.core.serialization import (
    CreatedAfter,
    CreatedBefore,
    Page,
    PageRequest,
    no_nul,
    open_ended,
    paging,
)
from api.search import image_similarity, recommendations, service
from api.search.schemas import Hit, LikeThis, Recommendations
from shared.images.models import MAX_PROMPT
from shared.search.query import Rank
from shared.search.ranking import Filters

_MAX_METADATA = 16
_METADATA = "metadata."
_MAX_SEED = 2**53 - 1


def says_something(text: str) -> str:
    text = unicodedata.normalize("NFC", no_nul(text)).strip()
    if not text:
        raise PydanticCustomError("empty", "It is empty.")
    return text


Text = Annotated[
    str,
    Query(max_length=MAX_PROMPT, description=f"In any language, 1 to {MAX_PROMPT} characters."),
    AfterValidator(says_something),
]

MaybeText = Annotated[
    Annotated[str, AfterValidator(says_something)] | None,
    Query(
        max_length=MAX_PROMPT,
        description=f"In any language, up to {MAX_PROMPT} characters; may be empty.",
    ),
    BeforeValidator(lambda text: (text or "").strip() or None),
]

Name = Annotated[str, Query(max_length=64), AfterValidator(no_nul)]
SessionFilter = Annotated[Name | None, Query(description="Only images of this session.")]
Side = Annotated[int, Query(ge=1, le=100_000)]
HitPaging = Annotated[PageRequest, Depends(paging(20, 100, longest=2000))]

MinScore = Annotated[
    float | None, Query(ge=0, le=1, allow_inf_nan=False, description="Leave out what scores less.")
]

RankBy = Annotated[
    Rank,
    Query(
        description="`relevance`: by the score, of meaning and words. `similarity`: by the cosine "
        "alone, strictly descending."
    ),
]

Diversity = Annotated[
    bool,
    Query(
        description="true: within a page, near-duplicates of a better entry go behind what is "
        "about as good; so scores do not descend. No page has other entries for that."
    ),
]


Fold = Annotated[
    bool,
    Query(
        description="true: the near-duplicates of an entry come with it, as `near_duplicates`, and "
        "not as entries; so a page has fewer of these. Those of other pages are not known."
    ),
]


def needs_query(**given: bool) -> None:
    """Refuse parameters that mean something with a query alone.

    Raises:
        Problem: 422 for the first that is given.
    """
    for name, is_given in given.items():
        if is_given:
            raise _broken(name, "It needs a query: q.")


@open_ended(_METADATA)
async def read_filters(
    *,
    request: Request,
    session_id: SessionFilter = None,
    model: Annotated[Name | None, Query(description="Only images of this model.")] = None,
    seed: Annotated[
        int | None, Query(ge=0, le=_MAX_SEED, description="Only images with this seed.")
    ] = None,
    kind: Annotated[
        Literal["txt2img", "img2img", "inpaint", "upscale"] | None,
        Query(description="Only images made this way."),
    ] = None,
    width: Annotated[Side | None, Query(description="Only images this wide, in pixels.")] = None,
    height: Annotated[Side | None, Query(description="Only images this high, in pixels.")] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    starred: Annotated[
        bool | None, Query(description="true: only starred images; false: only the others.")
    ] = None,
) -> Filters:
    """The filters; every one that is given must hold. `metadata.<key>=<value>` asks for a job's
    metadata.

    Raises:
        Problem: 422 for metadata that no job can have.
    """
    return Filters(
        session_id=session_id,
        model=model,
        seed=seed,
        kind=kind,
        width=width,
        height=height,
        created_after=created_after,
        created_before=created_before,
        starred=starred,
        metadata=_metadata(request),
    )


SearchFilters = Annotated[Filters, Depends(read_filters)]


def _metadata(request: Request) -> dict[str, str]:
    pairs = [
        (name.removeprefix(_METADATA), value)
        for name, value in request.query_params.multi_items()
        if name.startswith(_METADATA)
    ]
    for key, value in pairs:
        if not key or "\0" in key + value or len(key) > 64 or len(value) > 512:
            raise _broken(f"{_METADATA}{key}"[:64], "No job has such metadata.")
    if len(pairs) > _MAX_METADATA or len(dict(pairs)) != len(pairs):
        raise _broken("metadata", f"At most {_MAX_METADATA} keys, each once.")
    return dict(pairs)


def _broken(parameter: str, message: str) -> Problem:
    code = "metadata" if parameter.startswith("metadata") else "query_required"
    error = FieldError(pointer=None, parameter=parameter, code=code, message=message)
    return Problem("validation_failed", f"{parameter}: {message}", errors=[error])


router = APIRouter(prefix="/v1/search", tags=["search"])


def _body() -> dict[str, Any]:
    """OpenAPI of a body in either of two forms."""
    described = body_schema(LikeThis, {"by id": {"image_id": "img_01jd4zk3v8e0x9m5q7r2t6w8ya"}})
    described["requestBody"]["content"] |= FILE_SCHEMA["requestBody"]["content"]
    return described


@router.get("", operation_id="search.query", summary="Search by meaning")
@problems("embedding_unavailable")
async def query(
    *,
    resources: Res,
    principal: SearchRead,
    q: Annotated[
        Text | None,
        Query(description="In any language; without it the filtered images are listed."),
    ] = None,
    filters: SearchFilters,
    min_score: MinScore = None,
    rank: RankBy = Rank.RELEVANCE,
    diversity: Diversity = False,
    fold: Fold = False,
    paging: HitPaging,
) -> Page[Hit]:
    """Your tenant's images whose prompts mean what `q` says, best first.

    An exact phrase or a rare word goes before a vague neighbour. What is like nothing that was
    ever made finds nothing. Without `q`: all that the filters leave, newest first, without scores.
    `metadata.<key>=<value>` filters by the job's metadata.
    """
    if q is None:
        needs_query(min_score=min_score is not None, rank=rank is not Rank.RELEVANCE)
        return await service.newest(resources, principal, filters, paging, fold=fold)
    search_request = service.SearchRequest(
        q, filters, paging.limit, paging.after, min_score, rank, diversity, fold
    )
    return await service.search(resources, principal, search_request)


@problems(*BODY_PROBLEMS, "malformed_json", "malformed_request")
async def read_similar_image(request: Request, principal: SearchRead) -> Any:
    """The file of a multipart body, or the JSON body."""
    if media_type_of(request) == "multipart/form-data":
        return await read_file(request, principal)
    try:
        return await json_body(LikeThis)(request, principal)
    except Problem as problem:
        if problem.kind.code != "unsupported_media_type":
            raise
        either = "Send application/json with an image_id, or multipart/form-data with a file."
        raise Problem("unsupported_media_type", either) from None


@router.post("", operation_id="search.like", summary="Search by an image", openapi_extra=_body())
@problems(
    *("not_found", "image_refused", "prompt_unknown"),
    *("embedding_unavailable", "decoder_unavailable", "storage_unavailable"),
)
async def like(
    *,
    resources: Res,
    principal: SearchRead,
    source: Annotated[Any, Depends(read_similar_image)],
    filters: SearchFilters,
    min_score: MinScore = None,
    diversity: Diversity = False,
    fold: Fold = False,
    paging: HitPaging,
) -> Page[Hit]:
    """Images like this one, without the image itself.

    Give `image_id` in JSON, or an image in the multipart field `file`. Where the operator has
    configured an image-text model, pixels are compared and any image will do. Otherwise prompts
    are: the file must have been made by Darkroom, so that its prompt is on record or in its
    receipt. Filters and pages are query parameters, as with GET.
    """
    search_request = service.SearchRequest(
        "", filters, paging.limit, paging.after, min_score, diversity=diversity, fold=fold
    )
    if isinstance(source, LikeThis):
        page = await image_similarity.like_image(
            resources, principal, source.image_id, search_request
        )
    else:
        page = await image_similarity.like_file(resources, principal, source, search_request)
    return page


recommendations_router = APIRouter(prefix="/v1/prompts", tags=["prompts"])


@recommendations_router.get(
    "/recommendations", operation_id="prompts.recommendations", summary="Recommend prompts"
)
@problems("embedding_unavailable")
async def recommend(
    *,
    resources: Res,
    principal: SearchRead,
    q: MaybeText = None,
    session_id: Annotated[
        Name | None, Query(description="Recommend for this session; leave out what it has used.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=50, description="Prompts, 1 to 50.")] = 8,
) -> Recommendations:
    """Prompts near to `q`, which may be half typed, or else to what the session made last.

    Ranked by nearness and by what became of their images; without what the session has used.
    Where you have too few, shipped ones fill up, marked `starter`.
    """
    request = recommendations.RecommendationRequest(q, session_id, limit)
    return await recommendations.recommend_prompts(resources, principal, request)

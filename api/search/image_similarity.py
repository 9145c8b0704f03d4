"""The rules of searching with an image: by its pixels where a model sees them, else by its prompt.

Which of the two, the operator decides (`DARKROOM_IMAGE_EMBEDDING_MODEL`).
"""

import hashlib
import io
from dataclasses import replace

from starlette.datastructures import UploadFile

from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.serialization import Page
from api.images import service as image_service
from api.images.service import receipt_of
from api.images.uploads import clean_image, refused
from api.search import cursor, service
from api.search.cursor import Cursor
from api.search.embedding import FIT_SIDE, vector_of_image
from api.search.schemas import Hit
from api.search.service import SearchRequest, page_of
from shared.images import models as image_models
from shared.images import queries as image_queries
from shared.images.formats import ImageRefused
from shared.images.models import MAX_PROMPT
from shared.search import image_similarity, queries
from shared.search.embeddings import dimensions_of
from shared.search.image_similarity import SimilarityQuery
from shared.search.query import Phase, Position
from shared.search.ranking import QueryVector
from shared.search.terms import Lexical


async def like_image(
    resources: Resources, principal: Principal, image_id: str, request: SearchRequest
) -> Page[Hit]:
    """Images like one that is here, without that one.

    Raises:
        Problem: 404, 422 for a cursor of another search, 503 when nobody can embed.
    """
    row = await image_service.find(resources, principal, image_id)
    model = resources.settings.image_embedding_model
    if model is None:
        return await service.search(resources, principal, _with_prompt_of(row, request))
    try:
        vector = await _vector_of(resources, principal, row, model)
    except Problem as problem:
        if problem.kind.code != "object_missing":
            raise
        return await service.search(resources, principal, _with_prompt_of(row, request))
    others = replace(request, filters=replace(request.filters, without_image=row.id))
    return await _search(resources, principal, vector, others, image_id)


async def like_file(
    resources: Resources, principal: Principal, file: UploadFile, request: SearchRequest
) -> Page[Hit]:
    """The same for a file: any image where pixels are compared, else one with a known prompt.

    Raises:
        Problem: 422 when it is no image, or nobody knows its prompt; and as `like_image`.
    """
    data = await file.read(resources.settings.max_upload_bytes + 1)
    model = resources.settings.image_embedding_model
    digest = hashlib.sha256(data).hexdigest()
    if model is not None:
        try:
            clean = await clean_image(resources, io.BytesIO(data), FIT_SIDE)
        except ImageRefused as refusal:
            raise refused(refusal) from None
        vector = await vector_of_image(resources, model, clean.data)
        return await _search(resources, principal, vector, request, digest)
    async with resources.tenant_transaction(principal) as session:
        known = image_queries.find_image_by_file(principal.tenant_id, digest).limit(1)
        row = (await session.scalars(known)).one_or_none()
    if row is not None:
        return await service.search(resources, principal, _with_prompt_of(row, request))
    try:
        receipt = await on_thread(receipt_of, data)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    prompt = receipt.get("prompt") if receipt is not None else None
    if not isinstance(prompt, str) or not prompt.strip() or "\0" in prompt:
        raise Problem("prompt_unknown")
    return await service.search(resources, principal, replace(request, text=prompt[:MAX_PROMPT]))


def _with_prompt_of(row: image_models.Image, request: SearchRequest) -> SearchRequest:
    filters = replace(request.filters, without_image=row.id)
    return replace(request, text=row.receipt["prompt"], filters=filters)


async def _vector_of(
    resources: Resources, principal: Principal, row: image_models.Image, model: str
) -> QueryVector:
    """The image's own vector; made now if the workers have not come to it yet."""
    async with resources.tenant_transaction(principal) as session:
        statement = image_similarity.vector_of(principal.tenant_id, row.id, model)
        known = (await session.scalars(statement)).one_or_none()
    if known is not None:
        return QueryVector(model, dimensions_of(known), known)
    small = await image_service.read_object(resources, row.thumbnail_s3_key)
    return await vector_of_image(resources, model, small.body)


async def _search(
    resources: Resources,
    principal: Principal,
    vector: QueryVector,
    request: SearchRequest,
    image: str,
) -> Page[Hit]:
    """`image` is its id or its digest. Its vector's text varies: Postgres has fewer digits."""
    query = SimilarityQuery(principal.tenant_id, request.filters, vector, request.min_score)
    scope = ("images", vector.model, image, *request.scope(principal))
    async with service.list_transaction(resources, principal, request.limit) as session:
        position: Position | None = None
        if request.after is not None:
            begun = cursor.decode(request.after, (), *scope)
            phase, position = begun.phase, begun.position
        else:
            counted = await session.scalars(
                queries.count_rows(principal.tenant_id, request.filters)
            )
            phase = Phase.EXACT if counted.one() <= queries.EXACT_UP_TO else Phase.ANN

        results = await service.fill(
            session,
            lambda phase, limit, after: image_similarity.page(phase, query, limit, after),
            *(phase, position, request.limit + 1),
        )
    page = results[: request.limit]
    if len(results) <= request.limit:
        return await page_of(resources, request, page, None)
    last = Cursor(page[-1].phase, page[-1].position, Lexical())
    return await page_of(resources, request, page, cursor.encode(last, (), *scope))

"""The rules of searching with a picture: by its pixels where a model sees them, else by its prompt.

Which of the two, the operator decides (`DARKROOM_PICTURE_MODEL`).
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from starlette.datastructures import UploadFile

from api.context import Resources
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.core.serialization import Page
from api.images import service as image_service
from api.images.inspect import receipt_of
from api.images.service import clean_image, refused
from api.jobs.schemas import MAX_PROMPT
from api.search import cursor, service
from api.search.cursor import Cursor, Phase
from api.search.embedding import FIT_SIDE, vector_of_picture
from api.search.schemas import Hit
from api.search.service import Asked, Found, page_of
from shared.images import ImageRefused
from shared.images import models as image_models
from shared.images import queries as image_queries
from shared.search import image_similarity, queries
from shared.search.embeddings import dimensions_of
from shared.search.image_similarity import Likeness
from shared.search.queries import Hits
from shared.search.query import Position
from shared.search.ranking import QueryVector
from shared.search.terms import Lexical

_PAGES: dict[Phase, Callable[[Likeness, int, Position | None], Hits]] = {
    Phase.FEW: image_similarity.page_of_few,
    Phase.MANY: image_similarity.page_of_many,
    Phase.REST: image_similarity.page_of_rest,
}


async def like_image(
    resources: Resources, principal: Principal, image_id: str, asked: Asked
) -> Page[Hit]:
    """Pictures like one that is here, without that one.

    Raises:
        Problem: 404, 422 for a cursor of another search, 503 when nobody can embed.
    """
    row = await image_service.find(resources, principal, image_id)
    if resources.settings.picture_model is None:
        return await service.search(resources, principal, _with_prompt_of(row, asked))
    try:
        vector = await _vector_of(resources, principal, row, resources.settings.picture_model)
    except Problem as problem:
        if problem.kind.code != "object_missing":
            raise
        return await service.search(resources, principal, _with_prompt_of(row, asked))
    others = replace(asked, filters=replace(asked.filters, without_image=row.id))
    return await _search(resources, principal, vector, others, image_id)


async def like_file(
    resources: Resources, principal: Principal, file: UploadFile, asked: Asked
) -> Page[Hit]:
    """The same for a file: any picture where pixels are compared, else one with a known prompt.

    Raises:
        Problem: 422 when it is no picture, or nobody knows its prompt; and as `like_image`.
    """
    data = await file.read(resources.settings.max_upload_bytes + 1)
    if resources.settings.picture_model is not None:
        try:
            clean = await clean_image(resources, io.BytesIO(data), FIT_SIDE)
        except ImageRefused as refusal:
            raise refused(refusal) from None
        vector = await vector_of_picture(resources, resources.settings.picture_model, clean.data)
        digest = hashlib.sha256(data).hexdigest()
        return await _search(resources, principal, vector, asked, digest)
    row = await _known(resources, principal, data)
    if row is not None:
        return await service.search(resources, principal, _with_prompt_of(row, asked))
    try:
        receipt = await on_thread(receipt_of, data)
    except ImageRefused as refusal:
        raise refused(refusal) from None
    prompt = receipt.get("prompt") if receipt is not None else None
    if not isinstance(prompt, str) or not prompt.strip() or "\0" in prompt:
        raise Problem("prompt_unknown")
    return await service.search(resources, principal, replace(asked, text=prompt[:MAX_PROMPT]))


async def _known(
    resources: Resources, principal: Principal, data: bytes
) -> image_models.Image | None:
    digest = hashlib.sha256(data).hexdigest()
    async with resources.tenant_transaction(principal) as session:
        statement = image_queries.find_image_by_file(principal.tenant_id, digest).limit(1)
        return (await session.scalars(statement)).one_or_none()


def _with_prompt_of(row: image_models.Image, asked: Asked) -> Asked:
    filters = replace(asked.filters, without_image=row.id)
    return replace(asked, text=row.receipt["prompt"], filters=filters)


async def _vector_of(
    resources: Resources, principal: Principal, row: image_models.Image, model: str
) -> QueryVector:
    """The picture's own vector; made now if the workers have not come to it yet."""
    async with resources.tenant_transaction(principal) as session:
        statement = image_similarity.vector_of(principal.tenant_id, row.id, model)
        known = (await session.scalars(statement)).one_or_none()
    if known is not None:
        return QueryVector(model, dimensions_of(known), known)
    small = await image_service.read_object(resources, row.thumbnail_s3_key)
    return await vector_of_picture(resources, model, small.body)


async def _search(
    resources: Resources, principal: Principal, vector: QueryVector, asked: Asked, picture: str
) -> Page[Hit]:
    """`picture` is its id or its digest. Its vector's text varies: Postgres has fewer digits."""
    question = Likeness(principal.tenant_id, asked.filters, vector, asked.min_score)
    scope = ("pictures", vector.model, picture, *asked.scope(principal))
    async with (
        resources.listing(principal, asked.limit),
        resources.tenant_transaction(principal, service.SECONDS, queries.PLANNING) as session,
    ):
        position: Position | None = None
        if asked.after is not None:
            begun = cursor.decode(asked.after, (), *scope)
            phase, position = begun.phase, begun.position
        else:
            counted = await session.scalars(queries.count_rows(principal.tenant_id, asked.filters))
            phase = Phase.FEW if counted.one() <= queries.EXACT_UP_TO else Phase.MANY

        async def read(phase: Phase, after: Position | None, wanted: int) -> list[Found]:
            found: Any = await session.execute(_PAGES[phase](question, wanted, after))
            return service.entries(phase, found.all())

        wanted = asked.limit + 1
        found = await read(phase, position, wanted)
        if phase is Phase.MANY and len(found) < wanted:
            found += await read(Phase.REST, None, wanted - len(found))
    page = found[: asked.limit]
    shown = await on_thread(service.diversified, page) if asked.diversity else page
    if len(found) <= asked.limit:
        return await page_of(resources, shown, None)
    last = Cursor(page[-1].phase, page[-1].position, Lexical())
    return await page_of(resources, shown, cursor.encode(last, (), *scope))

"""SQL of images that look alike: their vectors, and pages of them in order.

The same three ways as for prompts (`shared.search.queries`): few are ordered exactly, of many
the nearest by an HNSW index come first, and what was no candidate follows exactly. An image
without a vector has the score 0, so that no search loses rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    ColumnElement,
    Double,
    Insert,
    Select,
    Text,
    and_,
    cast,
    func,
    literal,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert

from shared.core.database import with_params
from shared.images.models import Image, ImageVector, Prompt
from shared.search.embeddings import IMAGES
from shared.search.queries import CANDIDATES, Hits
from shared.search.query import Phase, Position
from shared.search.ranking import Filters, QueryVector, image_conditions, rounded


@dataclass(frozen=True)
class SimilarityQuery:
    """What is searched for, the same on every page."""

    tenant_id: UUID
    filters: Filters
    vector: QueryVector
    min_score: float | None = None


def page(phase: Phase, query: SimilarityQuery, limit: int, after: Position | None) -> Hits:
    """The entries of a phase that come after a position."""
    similarity = func.coalesce(_similarity(query.vector), 0.0)
    score = rounded(func.greatest(similarity, 0.0)).label("score")
    of_model = and_(
        ImageVector.image_id == Image.id, ImageVector.embedding_model == query.vector.model
    )
    statement = (
        select(Image, Prompt.text, Image.prompt_id, score, similarity.label("similarity"), score)
        .join(Prompt, Prompt.id == Image.prompt_id)
        .outerjoin(ImageVector, of_model)
        .where(*image_conditions(query.filters.asks))
    )
    if phase is Phase.ANN:
        statement = statement.where(Image.id.in_(_nearest(query)))
    if phase is Phase.FALLBACK:
        statement = statement.where(Image.id.not_in(_nearest(query)))
    if query.min_score is not None:
        statement = statement.where(score >= query.min_score)
    if after is not None:
        statement = statement.where(
            tuple_(score, Image.id) < tuple_(literal(after.score), after.image_id)
        )
    statement = statement.order_by(score.desc(), Image.id.desc()).limit(limit)
    return with_params(statement, tenant=query.tenant_id, **query.filters.values())


def vector_of(tenant_id: UUID, image_id: UUID, model: str) -> Select[str]:
    """An image's vector in pgvector's form; no row: it has none of this model."""
    return select(cast(ImageVector.embedding, Text)).where(
        ImageVector.tenant_id == tenant_id,
        ImageVector.image_id == image_id,
        ImageVector.embedding_model == model,
        ImageVector.embedding.is_not(None),
    )


def end_of_window(before: UUID | None, images: int) -> Select[UUID]:
    """The last of that many images from `before` on, newest first; no row: there are fewer."""
    statement = select(Image.id).order_by(Image.id.desc()).offset(images - 1).limit(1)
    return statement if before is None else statement.where(Image.id < before)


def list_unseen(
    model: str, limit: int, before: UUID | None, until: UUID | None
) -> Select[UUID, str]:
    """(id, key of the thumbnail) of images without a vector of this model, newest first.

    Among those older than `before` and not older than `until`: to look for what is missing among
    all takes Postgres as long as to read them.
    """
    seen = select(ImageVector.image_id).where(
        ImageVector.image_id == Image.id, ImageVector.embedding_model == model
    )
    statement = select(Image.id, Image.thumbnail_s3_key).where(~seen.exists())
    if before is not None:
        statement = statement.where(Image.id < before)
    if until is not None:
        statement = statement.where(Image.id >= until)
    return statement.order_by(Image.id.desc()).limit(limit)


def store_vector(image_id: UUID, model: str, embedding: Sequence[float] | None) -> Insert:
    """Keep an image's vector, unless the image has gone meanwhile."""
    vector = None if embedding is None else list(embedding)
    row = select(Image.id, Image.tenant_id, literal(vector, Vector), literal(model, Text)).where(
        Image.id == image_id
    )
    statement = insert(ImageVector).from_select(
        ["image_id", "tenant_id", "embedding", "embedding_model"], row
    )
    return statement.on_conflict_do_update(
        index_elements=[ImageVector.image_id],
        set_={
            "embedding": statement.excluded.embedding,
            "embedding_model": statement.excluded.embedding_model,
        },
    )


def _nearest(query: SimilarityQuery) -> Select[UUID]:
    vector = query.vector
    is_of_model, near = IMAGES.nearest(vector.model, vector.dimensions, literal(vector.text, Text))
    statement = select(ImageVector.image_id).where(
        ImageVector.tenant_id == query.tenant_id, literal_column(is_of_model)
    )
    if query.filters.narrows:
        conditions = image_conditions(query.filters.asks)
        fits = select(Image.id).where(Image.id == ImageVector.image_id, *conditions)
        statement = statement.where(fits.exists())
    return statement.order_by(near).limit(CANDIDATES)


def _similarity(vector: QueryVector) -> ColumnElement[float]:
    distance: ColumnElement[float] = ImageVector.embedding.op("<=>", return_type=Double())(
        cast(literal(vector.text, Text), Vector)
    )
    return cast(1 - distance, Double)

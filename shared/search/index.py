"""The HNSW index of each embedding model: its name, and the SQL that makes, checks and drops it.

A column of vectors has no fixed length, because model and dimension are settings; an index needs
one. So there is one partial index per model, over the vectors cast to half precision: half the
size, and the candidates it gives are ordered again by the full vectors.
"""

import hashlib
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    TextClause,
    cast,
    column,
    literal_column,
    select,
    table,
    text,
)

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
PICTURES = EmbeddingIndexes("image_vectors", "ix_image_vectors_hnsw_")


def quote(constant: str) -> str:
    """A string as an SQL literal. A partial index is chosen by its constant, not by a parameter."""
    escaped = constant.replace("\\", "\\\\").replace("'", "''").replace(":", "\\x3a")
    return f"E'{escaped}'"

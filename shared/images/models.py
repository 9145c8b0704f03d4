"""Tables of sessions, prompts with their embeddings, images and uploads."""

from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from shared.core.database import Base, CreatedAt, Id, Instant, Json
from shared.core.ids import encode_id


class Session(Base):
    """A client's folder: made on first use, named by the client, unique within its tenant."""

    __tablename__ = "sessions"
    __table_args__ = (Index("ix_sessions_newest", "tenant_id", "created_at", "id"),)

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    created_at: Mapped[CreatedAt]


PUNCTUATION = "[!-/:-@[-`{-~]"
"""A regular expression: that of ASCII. It ends words, or Postgres' parser would take ``ART-73155``
for a word and a negative number, and ``img_0042.png`` for one word."""

MAX_PROMPT = 4000
"""Characters of a prompt."""


class Prompt(Base):
    """Each distinct prompt of a tenant once, with its embedding."""

    __tablename__ = "prompts"
    # One HNSW index for each embedding model stands beside these; see `shared.search.embeddings`.
    __table_args__ = (
        UniqueConstraint("tenant_id", "text_sha256"),
        Index("ix_prompts_newest", "tenant_id", "id"),
        Index("ix_prompts_folded", "tenant_id", "folded"),
        Index("ix_prompts_embedding_model", "embedding_model", "id"),
        Index(
            "ix_prompts_words",
            "words",
            postgresql_using="gin",
            # A search must not wade through a list of pending entries.
            postgresql_with={"fastupdate": "off"},
        ),
        # A third, over the grams of scripts without spaces, is an expression that Alembic cannot
        # compare: ix_prompts_grams, see the migrations.
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(Text)
    text_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    """Uniqueness goes by the hash: a prompt may be longer than an index entry can be."""
    embedding: Mapped[list[float]] = mapped_column(Vector)
    """Unit vector of `embedding_model`; its length is that model's dimension."""
    embedding_model: Mapped[str] = mapped_column(Text)
    words: Mapped[str] = mapped_column(
        TSVECTOR,
        Computed(
            "to_tsvector('simple'::regconfig, "
            f"regexp_replace(text, '{PUNCTUATION}'::text, ' '::text, 'g'::text))",
            persisted=True,
        ),
        deferred=True,
    )
    """Without stemming or stop words: prompts come in every language."""
    folded: Mapped[str] = mapped_column(
        Text(collation="C"), Computed('"left"(lower(text), 200)', persisted=True), deferred=True
    )
    """What a half-typed prompt is compared with."""
    deleted_images: Mapped[int] = mapped_column(Integer, server_default=literal_column("0"))
    """How many of its images people have deleted."""
    created_at: Mapped[CreatedAt]


class Image(Base):
    """One committed image. Its object's key names the attempt, so nothing is overwritten."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("job_id", "index"),
        ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"]),
        Index(
            "ix_images_session",
            *("tenant_id", "session_id", "id"),
            # A search within a session needs its prompts and nothing else of its images.
            postgresql_include=["prompt_id", "reproduces"],
        ),
        Index("ix_images_prompt", "prompt_id", "id"),
        Index(
            "ix_images_reproduces", "reproduces", postgresql_where=text("reproduces IS NOT NULL")
        ),
        Index("ix_images_seed", "tenant_id", "seed"),
        Index("ix_images_created_at", "tenant_id", "created_at"),
        Index("ix_images_starred", "tenant_id", "id", postgresql_where=text("starred")),
        Index("ix_images_made_with", "tenant_id", "kind", "model", "width", "height"),
        Index("ix_images_sha256", "sha256"),
        CheckConstraint("seed >= 0", name="seed_is_not_negative"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    session_id: Mapped[str] = mapped_column(Text)
    prompt_id: Mapped[UUID] = mapped_column(ForeignKey("prompts.id"))
    index: Mapped[int] = mapped_column(SmallInteger)
    attempt: Mapped[int] = mapped_column(Integer)
    seed: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    content_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(Text)
    pixel_sha256: Mapped[str | None] = mapped_column(Text)
    """Null: an earlier version made it."""
    s3_key: Mapped[str] = mapped_column(Text)
    thumbnail_s3_key: Mapped[str] = mapped_column(Text)
    receipt: Mapped[Json]
    gpu_seconds: Mapped[float]
    reproduces: Mapped[UUID | None] = mapped_column(ForeignKey("images.id", ondelete="SET NULL"))
    """The image that `reproduce` made again as this one, for as long as it is there. Lists,
    searches and counts leave such images out; they are read by their id."""
    starred: Mapped[bool] = mapped_column(server_default=text("false"))
    kind: Mapped[str | None] = mapped_column(
        Text, Computed("receipt ->> 'kind'", persisted=True), deferred=True
    )
    model: Mapped[str | None] = mapped_column(
        Text, Computed("(receipt -> 'model') ->> 'name'", persisted=True), deferred=True
    )
    """These two repeat the receipt, so that a search can filter by them."""
    created_at: Mapped[CreatedAt]

    def facts(self) -> dict[str, Any]:
        """What results of a batch and webhooks say of it, besides its URL."""
        return {
            "state": "ready",
            "id": encode_id("img", self.id),
            "index": self.index,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "content_type": self.content_type,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "pixel_sha256": self.pixel_sha256,
        }


class DeletedImage(Base):
    """An image that was deleted a moment ago, and may be restored for a minute."""

    __tablename__ = "deleted_images"
    __table_args__ = (
        Index("ix_deleted_images_oldest", "deleted_at"),
        Index("ix_deleted_images_prompt", "prompt_id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    job_id: Mapped[UUID]
    prompt_id: Mapped[UUID]
    s3_key: Mapped[str] = mapped_column(Text)
    row: Mapped[Json]
    """Its row in `images`."""
    reproductions: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    """The images that reproduced it: ordinary ones now."""
    deleted_at: Mapped[Instant] = mapped_column(server_default=text("statement_timestamp()"))


class ImageVector(Base):
    """What an image-text model sees in an image; there where the operator configured one."""

    __tablename__ = "image_vectors"
    # One HNSW index for each model stands beside this one; see `shared.search.embeddings`.
    __table_args__ = (Index("ix_image_vectors_embedding_model", "embedding_model", "image_id"),)

    image_id: Mapped[UUID] = mapped_column(
        ForeignKey("images.id", ondelete="CASCADE"), primary_key=True
    )
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    embedding: Mapped[list[float] | None] = mapped_column(Vector)
    """Unit vector; null: the image's file is not there or cannot be read."""
    embedding_model: Mapped[str] = mapped_column(Text)


class Upload(Base):
    """An image that a client sent, cleaned and re-encoded, to start img2img from."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index("ix_uploads_tenant", "tenant_id", "id"),
        Index("ix_uploads_key", "api_key_id"),
    )

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    content_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(Text)
    s3_key: Mapped[str] = mapped_column(Text)
    api_key_id: Mapped[str | None] = mapped_column(Text)
    """Whose quota it takes from."""
    created_at: Mapped[CreatedAt]
    used_at: Mapped[Instant | None]
    """When a submission last asked for it, to some minutes; null: none has."""


class PendingDeletion(Base):
    """Objects whose rows are deleted: named in the deletion's own transaction, gone soon after."""

    __tablename__ = "pending_deletions"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    prefix: Mapped[str] = mapped_column(Text, primary_key=True)
    """Every object whose key begins so."""
    created_at: Mapped[CreatedAt]

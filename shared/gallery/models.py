"""Tables of sessions, prompts with their embeddings, images and uploads."""

from uuid import UUID

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables import Base, CreatedAt, Id, Json


class Session(Base):
    """A client's folder: made on first use, named by the client, unique within its tenant."""

    __tablename__ = "sessions"

    tenant_id: Mapped[UUID] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    created_at: Mapped[CreatedAt]


class Prompt(Base):
    """Each distinct prompt of a tenant once, with its embedding."""

    __tablename__ = "prompts"
    __table_args__ = (UniqueConstraint("tenant_id", "text_sha256"),)

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(Text)
    text_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    """Uniqueness goes by the hash: a prompt may be longer than an index entry can be."""
    embedding: Mapped[list[float]] = mapped_column(Vector)
    """Unit vector of `embedding_model`; its length is that model's dimension."""
    embedding_model: Mapped[str] = mapped_column(Text)
    created_at: Mapped[CreatedAt]


class Image(Base):
    """One committed picture. Its object's key names the attempt, so nothing is overwritten."""

    __tablename__ = "images"
    __table_args__ = (
        UniqueConstraint("job_id", "index"),
        ForeignKeyConstraint(["tenant_id", "session_id"], ["sessions.tenant_id", "sessions.id"]),
        Index("ix_images_session", "tenant_id", "session_id", "id"),
        Index("ix_images_prompt_id", "prompt_id"),
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
    s3_key: Mapped[str] = mapped_column(Text)
    thumbnail_s3_key: Mapped[str] = mapped_column(Text)
    receipt: Mapped[Json]
    gpu_seconds: Mapped[float]
    starred: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[CreatedAt]


class Upload(Base):
    """A picture that a client sent, cleaned and re-encoded, to start img2img from."""

    __tablename__ = "uploads"

    id: Mapped[Id]
    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)
    content_type: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(Text)
    s3_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[CreatedAt]

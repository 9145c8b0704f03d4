"""LoRAs that tenants have uploaded; each query takes the tenant."""

from typing import Any
from uuid import UUID

from sqlalchemy import Delete, Select, delete, exists, func, select
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.dml import ReturningDelete, ReturningInsert

from shared.jobs.models import Job, UploadedLora


def list_loras(tenant_id: UUID) -> Select[UploadedLora]:
    """A tenant's, by name."""
    return (
        select(UploadedLora).where(UploadedLora.tenant_id == tenant_id).order_by(UploadedLora.name)
    )


def insert_lora(lora: dict[str, Any]) -> ReturningInsert[UploadedLora]:
    """Keep one; no row where the tenant has one of that name."""
    statement = pg_insert(UploadedLora).values(**lora)
    return statement.on_conflict_do_nothing().returning(UploadedLora)


def delete_lora(tenant_id: UUID, name: str) -> ReturningDelete[str]:
    """Delete one; returns its key in S3."""
    statement: Delete = delete(UploadedLora).where(
        UploadedLora.tenant_id == tenant_id, UploadedLora.name == name
    )
    return statement.returning(UploadedLora.s3_key)


def is_wanted(tenant_id: UUID, s3_key: str) -> Select[bool]:
    """Whether an unfinished job of the tenant needs this file."""
    unfinished = select(Job.id).where(
        Job.tenant_id == tenant_id,
        Job.finished_at.is_(None),
        Job.loras.contains([{"s3_key": s3_key}]),
    )
    return select(exists(unfinished))


def sum_loras(tenant_id: UUID) -> Select[int]:
    """Bytes that a tenant keeps."""
    total = func.coalesce(func.sum(UploadedLora.bytes), 0)
    return select(total).where(UploadedLora.tenant_id == tenant_id)

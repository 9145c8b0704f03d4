"""A request for a batch: JSON with its lines, a multipart file, or an earlier file's id."""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, cast

from fastapi import Request
from pydantic_core import from_json
from starlette.datastructures import FormData

from api.batches.columns import Columns
from api.batches.file_formats import FileFormat, Line, read_file, read_list
from api.batches.schemas import MAX_NAME, BatchOptions, BatchSubmission
from api.context import Resources, parse_id, require_row
from api.core.bodies import checked, media_type_of, read_form
from api.core.errors import Problem
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.jobs.idempotency import IdempotentRequest
from api.webhooks.service import batch_webhook
from shared.batches import queries
from shared.core.storage import ObjectMissing

_OPERATION = "POST /v1/batches"
_MAX_FIELD_BYTES = 1024 * 1024
_MAX_FIELDS = 16
_TEXT_FIELDS = frozenset({"name", "on_error", "session_id", "template"})
"""Form fields that are text; the others are JSON."""
_IN_MEMORY = 1024 * 1024
_MAX_BRACKETS = 1_000_000
"""`{` and `[` in a JSON body, those in prompts included. Parsed, the 16 MB of a body could be five
million objects of 64 bytes each."""
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class BatchRequest:
    """A request that was read; its lines are still to be read from its file and validated."""

    options: BatchOptions
    webhook: dict[str, Any] | None
    source: Literal["json"] | FileFormat
    once: IdempotentRequest
    lines: Iterator[Line]
    name: str | None = None
    file: BinaryIO | None = None
    """What `lines` reads; None: they came in the body."""
    opened: AbstractContextManager[object] = field(default_factory=nullcontext)
    """To be closed in the end."""


async def receive(
    request: Request, resources: Resources, principal: Principal, idempotency_key: str | None
) -> BatchRequest:
    """The request's options and its lines.

    Raises:
        Problem: 415, 413 or 422 for what cannot be read; 404 for a file that is not this tenant's.
    """
    media_type = media_type_of(request)
    if media_type == "multipart/form-data":
        return await _receive_form(request, resources, idempotency_key)
    if media_type == "application/json" or media_type.endswith("+json"):
        return await _receive_json(request, resources, principal, idempotency_key)
    raise Problem(
        "unsupported_media_type", "Send application/json, or a file as multipart/form-data."
    )


# --- JSON --------------------------------------------------------------------------------------


async def _receive_json(
    request: Request, resources: Resources, principal: Principal, key: str | None
) -> BatchRequest:
    limit = resources.settings.max_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Problem(
                "body_too_large", f"JSON may have {limit} bytes at most; send more lines as a file."
            )
    batch, fingerprint = await on_thread(_parse_body, bytes(body), limit)
    webhook = batch_webhook(batch.webhook, resources.settings)
    once = IdempotentRequest(key, fingerprint)
    if batch.upload_id is None:
        lines = read_list(batch.items or (), columns_of(batch))
        return BatchRequest(batch, webhook, "json", once, lines, batch.name)
    file, name = await _open_upload(resources, principal, batch.upload_id)
    form = batch.format or _format_of(name, "")
    lines = read_file(file, form, columns_of(batch))
    return BatchRequest(batch, webhook, form, once, lines, batch.name or name, file, closing(file))


def columns_of(options: BatchOptions) -> Columns | None:
    if options.template is None and not options.columns:
        return None
    return Columns(options.template, options.columns, alternatives=options.templates)


def _parse_body(body: bytes, limit: int) -> tuple[BatchSubmission, bytes]:
    if body.startswith(_GZIP_MAGIC):
        body = _gunzip(body, limit)
    if body.count(b"{") + body.count(b"[") > _MAX_BRACKETS:
        raise Problem("body_too_large", f"JSON may have {_MAX_BRACKETS} objects and lists at most.")
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError:
        raise Problem(
            "malformed_json", "The body cannot be parsed as JSON (RFC 8259, UTF-8)."
        ) from None
    return checked(BatchSubmission, document), _fingerprint(document)


def _gunzip(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise Problem("malformed_request", "The gzip data are damaged.") from None
    if len(plain) > limit:
        raise Problem("body_too_large", f"Unpacked, JSON may have {limit} bytes at most.")
    if not unpacker.eof:
        raise Problem("malformed_request", "The gzip data are cut off.")
    return plain


def _fingerprint(meaning: Any, file_sha256: str = "") -> bytes:
    """Of what was asked, whatever the order or the spacing of its JSON."""
    text = json.dumps(meaning, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256("\n".join((_OPERATION, text, file_sha256)).encode("ascii")).digest()


# --- Files -------------------------------------------------------------------------------------


async def _receive_form(request: Request, resources: Resources, key: str | None) -> BatchRequest:
    form, upload = await read_form(request, fields=_MAX_FIELDS, field_bytes=_MAX_FIELD_BYTES)
    options, meaning = _read_options(form)
    webhook = batch_webhook(options.webhook, resources.settings)
    kind = _form_format(form) or _format_of(upload.filename or "", upload.content_type or "")
    file = upload.file
    digest = await on_thread(sha256_of, file)
    fingerprint = await on_thread(_fingerprint, [kind, meaning], digest)
    lines = read_file(file, kind, columns_of(options))  # the form closes it
    name = options.name or clean_name(upload.filename)
    once = IdempotentRequest(key, fingerprint)
    return BatchRequest(options, webhook, kind, once, lines, name, file)


def _read_options(form: FormData) -> tuple[BatchOptions, dict[str, Any]]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in ("file", "format") or not isinstance(value, str):
            continue
        if name in _TEXT_FIELDS:
            fields[name] = value
            continue
        try:
            fields[name] = from_json(value, allow_inf_nan=False)
        except ValueError:
            message = f"The form field {name[:64]!r} must be JSON."
            raise Problem.invalid(f"/{name[:64]}", "malformed_json", message) from None
    return checked(BatchOptions, fields), fields


def _form_format(form: FormData) -> FileFormat | None:
    match form.get("format"):
        case None | "jsonl" | "csv" as known:
            return known
    raise Problem.invalid("/format", "literal_error", "format must be jsonl or csv.")


def _format_of(name: str, content_type: str) -> FileFormat:
    plain = name.lower().removesuffix(".gz")
    is_csv = plain.endswith(".csv") or content_type.startswith("text/csv")
    return "csv" if is_csv else "jsonl"


def clean_name(name: str | None) -> str | None:
    """A file's name as it is kept; None: it has none."""
    kept = "".join(character for character in name or "" if character.isprintable())
    return kept[-MAX_NAME:] or None


def sha256_of(file: BinaryIO) -> str:
    """The hash of a file's whole content; leaves it at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # any file will do
    file.seek(0)
    return digest.hexdigest()


async def _open_upload(
    resources: Resources, principal: Principal, upload_id: str
) -> tuple[BinaryIO, str]:
    row_id = parse_id("upl", upload_id, "file")
    async with resources.tenant_transaction(principal) as session:
        row = await require_row(session, queries.get_file(principal.tenant_id, row_id), "file")
    file = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115
    try:
        await resources.on_storage(resources.storage.read_into, row.s3_key, file)
    except ObjectMissing:
        file.close()
        raise Problem("object_missing") from None
    except BaseException:
        file.close()
        raise
    return file, row.name

"""LoRAs that tenants upload: check, keep, delete, and which ones a submission may name."""

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from api.context import Resources, require_row
from api.core.errors import Problem, bad_parameter
from api.core.fairness import on_thread
from api.core.principal import Principal
from api.images.uploads import discarded_on_failure, put_unrecorded
from api.jobs.schemas import UploadedLora
from shared.core.ids import new_id
from shared.core.model_catalog import LoraSpec
from shared.core.safetensors import NotSafetensors, SafetensorsHeader, TensorInfo, read_header
from shared.core.storage import lora_key
from shared.images import deletion
from shared.jobs import models
from shared.jobs.queries import loras as queries

_MAX_HEADER_BYTES = 4 * 2**20
_MAX_TENSORS = 20_000
_MAX_RANK = 512
_DTYPES = ("F32", "F16", "BF16")
_UNETS = ("sd", "sdxl", "lcm")
_WIDTHS = {768: ("sd", "lcm"), 1024: ("sd",), 2048: ("sdxl",)}
"""Width of the text in the cross-attention of a UNet -> families that have it."""
_DOWN = (".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight")

OwnLoras = Mapping[str, models.UploadedLora]
"""Name -> a LoRA of the tenant's own."""


async def own_loras(resources: Resources, principal: Principal) -> OwnLoras:
    """Those of the tenant; none where uploads are off."""
    if not resources.settings.lora_uploads:
        return {}
    async with resources.tenant_transaction(principal) as session:
        rows = (await session.scalars(queries.list_loras(principal.tenant_id))).all()
        return {row.name: row for row in rows}


async def accept_lora(
    resources: Resources, principal: Principal, form: FormData, file: UploadFile
) -> UploadedLora:
    """Keep a client's LoRA under the name that it gives.

    Raises:
        Problem: 403 where uploads are off; 409 for a name that is taken; 422 for any other file;
            429 when the tenant may keep no more.
        StorageUnavailable: S3 is unavailable.
    """
    check_enabled(resources)
    spec = _spec_of(form)
    if resources.catalog.get_lora(spec.name) is not None:
        raise Problem("lora_exists", f"The catalogue has a LoRA named {spec.name}.")
    size = file.size or 0
    try:
        await on_thread(check_lora, file.file, size, spec.family)
    except LoraRefused as refusal:
        raise bad_parameter("file", refusal.code, str(refusal), "lora_refused") from None
    key = lora_key(new_id())
    columns = {
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "name": spec.name,
        "family": spec.family,
        "trigger_words": list(spec.trigger_words),
        "bytes": size,
        "sha256": await on_thread(_sha256, file.file),
        "s3_key": key,
    }
    await _check_room(resources, principal, size)
    await put_unrecorded(resources, principal, key, _put, resources, key, file.file)
    async with (
        discarded_on_failure(resources, [columns]),
        resources.tenant_transaction(principal) as session,
    ):
        row = (await session.scalars(queries.insert_lora(columns))).one_or_none()
        if row is None:
            raise Problem("lora_exists", f"You have a LoRA named {spec.name}.")
        await session.execute(deletion.delete_pending_deletions(principal.tenant_id, [key]))
    return UploadedLora.of(row)


async def delete_lora(resources: Resources, principal: Principal, name: str) -> None:
    """Delete one of the tenant's own; images made with it stay.

    Raises:
        Problem: 404; 409 while an unfinished job needs it.
    """
    async with resources.tenant_transaction(principal) as session:
        key = await require_row(session, queries.delete_lora(principal.tenant_id, name), "LoRA")
        if (await session.scalars(queries.is_wanted(principal.tenant_id, key))).one():
            raise Problem("job_not_finished", "An unfinished job needs this LoRA.")
        await session.execute(deletion.schedule_deletions(principal.tenant_id, [key]))


def check_enabled(resources: Resources) -> None:
    """Raise 403 where the operator has not turned uploads on."""
    if not resources.settings.lora_uploads:
        raise Problem("lora_uploads_disabled")


def _spec_of(form: FormData) -> LoraSpec:
    words = [word.strip() for word in str(form.get("trigger_words") or "").split(",")]
    fields: dict[str, Any] = {
        "name": form.get("name"),
        "family": form.get("family"),
        "source": "upload",
        "trigger_words": tuple(word[:200] for word in words if word)[:20],
    }
    try:
        return LoraSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "family"
        raise bad_parameter(name, first["type"], first["msg"]) from None


async def _check_room(resources: Resources, principal: Principal, size: int) -> None:
    limit = resources.settings.lora_upload_total_bytes
    async with resources.tenant_transaction(principal) as session:
        kept = (await session.scalars(queries.sum_loras(principal.tenant_id))).one()
    if kept + size > limit:
        detail = f"A tenant may keep {limit} bytes of LoRAs. Delete some."
        raise Problem("upload_bytes_exceeded", detail, headers={"Retry-After": "3600"})


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _put(resources: Resources, key: str, file: BinaryIO) -> None:
    file.seek(0)
    with contextlib.suppress(ValueError):  # boto3 closes it, the request does so again
        resources.storage.put_file(key, file, "application/octet-stream")


# --- What a LoRA's header must be like: no weights are read -----------------------------------


class LoraRefused(Exception):
    """The file cannot be uploaded as a LoRA: one sentence and a stable code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_lora(file: BinaryIO, size: int, family: str) -> None:
    """Read a file's header from its beginning, and refuse what cannot be a LoRA for `family`.

    Raises:
        LoraRefused: for its format, its size, its kind, or its base model.
    """
    try:
        header = read_header(file, size, _MAX_HEADER_BYTES)
    except NotSafetensors as error:
        raise LoraRefused("not_safetensors", f"This is not a safetensors file: {error}.") from None
    tensors = header.tensors
    if len(tensors) > _MAX_TENSORS:
        raise LoraRefused("too_many_tensors", f"A LoRA has {_MAX_TENSORS} tensors at most.")
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or not ("lora" in name or name.endswith(".alpha")):
            raise LoraRefused("not_a_lora", f"{name[:80]!r} is no matrix of a LoRA.")
        if "dora_scale" in name or "lora_magnitude" in name:
            raise LoraRefused("not_supported", "DoRA is not supported.")
    down = {name: tensor for name, tensor in tensors.items() if name.endswith(_DOWN)}
    if not down:
        raise LoraRefused("not_a_lora", "This file has no LoRA's matrices.")
    rank = max(tensor.shape[0] if tensor.shape else 0 for tensor in down.values())
    if rank > _MAX_RANK:
        raise LoraRefused("rank_too_high", f"Its rank is {rank}; {_MAX_RANK} is the most.")
    _check_base(header, down, family)


def _check_base(header: SafetensorsHeader, down: dict[str, TensorInfo], family: str) -> None:
    """What the names of its modules and the widths of their inputs say of its base model."""
    for_unet = any(
        name.startswith(("unet.", "lora_unet_down", "lora_unet_up", "lora_unet_mid"))
        or name.startswith(("lora_unet_input", "lora_unet_output"))
        for name in header.tensors
    )
    widths = {
        tensor.shape[1]
        for name, tensor in down.items()
        if "attn2" in name and ("to_k" in name or "to_v" in name) and len(tensor.shape) == 2
    }
    known = {one for width in widths for one in _WIDTHS.get(width, ())}
    if for_unet != (family in _UNETS) or (known and family not in known):
        base = " or ".join(sorted(known)) or ("a UNet" if for_unet else "a transformer")
        raise LoraRefused("wrong_family", f"It was trained for {base}, not for {family}.")

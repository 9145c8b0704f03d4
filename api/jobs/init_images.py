"""Where img2img starts: an upload, an image made before, a picture in the request or at a URL."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from api.deps import Resources
from api.fairness import on_thread
from api.jobs.fetching import FetchFailed
from api.principal import Principal
from api.problems import FieldError, Problem
from api.uploads.intake import clean_image, store_upload
from api.usage.admission import check_uploads
from shared.gallery import statements as gallery
from shared.ids import MalformedId, from_wire, to_wire
from shared.images import CleanImage, ImageRefused, parse_data_url

POINTER = "/init_image"


@dataclass(frozen=True)
class InitImage:
    """A picture in storage that this tenant may start from."""

    ref: str
    s3_key: str
    sha256: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    new_upload: dict[str, Any] | None = None
    """The row to insert with the job, for a picture that came inside the request."""

    def column(self) -> dict[str, str]:
        """What the job's row keeps."""
        return {"ref": self.ref, "s3_key": self.s3_key, "sha256": self.sha256}


async def resolve_init_image(
    resources: Resources, principal: Principal, reference: str | None
) -> InitImage | None:
    """The picture behind an `init_image` field; None when there is none.

    Raises:
        Problem: 404 for the id of nothing, or of another tenant's; 422 for what is no reference or
            refused as an image; 503 when storage, the database or the decoders are not available.
    """
    if reference is None:
        return None
    if reference[:5].lower() == "data:":
        return await _store_picture(resources, principal, _from_data_url(resources, reference))
    if reference[:8].lower().startswith(("https://", "http://")):
        return await _store_picture(resources, principal, resources.fetcher.fetch(reference))
    found = await _look_up(resources, principal, reference)
    if found is None:
        # As for an id in a path; the pointer says that it is the one in the body.
        message = "There is no upload or image with this id."
        missing = FieldError(pointer=POINTER, code="init_image_not_found", message=message)
        raise Problem("not_found", message, errors=[missing])
    return found


async def check_init_image(
    resources: Resources, principal: Principal, reference: str | None, *, needs_size: bool
) -> tuple[int, int] | None:
    """Its (width, height) for a dry run, which stores nothing and fetches nothing.

    None without one, for an https URL, and for a `data:` URL whose size does not matter.

    Raises:
        Problem: 404 and 422 as above.
    """
    if reference is None or reference[:8].lower().startswith(("https://", "http://")):
        return None
    if reference[:5].lower() == "data:":
        if not needs_size:
            return None
        clean = await _clean(resources, _from_data_url(resources, reference))
        return clean.width, clean.height
    found = await resolve_init_image(resources, principal, reference)
    return found.size if found is not None else None


async def _look_up(resources: Resources, principal: Principal, reference: str) -> InitImage | None:
    prefix = "upl" if reference.startswith("upl_") else "img"
    try:
        row_id = from_wire("upl" if prefix == "upl" else "img", reference)
    except MalformedId:
        raise Problem.invalid(
            POINTER,
            "malformed_init_image",
            "Give an upload id, an image id, a data: URL or an https URL.",
        ) from None
    async with resources.tenant_transaction(principal) as session:
        if prefix == "upl":
            upload = gallery.get_upload(principal.tenant_id, row_id)
            if (row := (await session.scalars(upload)).one_or_none()) is not None:
                await session.execute(gallery.touch_uploads(principal.tenant_id, [row_id]))
                return InitImage(reference, row.s3_key, row.sha256, (row.width, row.height))
            return None
        image = gallery.get_image(principal.tenant_id, row_id)
        if (picture := (await session.scalars(image)).one_or_none()) is not None:
            size = picture.width, picture.height
            return InitImage(reference, picture.s3_key, picture.sha256, size)
        return None


async def _from_data_url(resources: Resources, url: str) -> bytes:
    return await on_thread(parse_data_url, url, resources.settings.max_upload_bytes)


async def _store_picture(
    resources: Resources, principal: Principal, reading: Awaitable[bytes]
) -> InitImage:
    """A picture that came with the request becomes an upload, to be inserted with the job."""
    await check_uploads(resources, principal)
    clean = await _clean(resources, reading)
    upload = await store_upload(resources, principal, clean)
    return InitImage(
        to_wire("upl", upload["id"]),
        upload["s3_key"],
        upload["sha256"],
        (clean.width, clean.height),
        new_upload=upload,
    )


async def _clean(resources: Resources, reading: Awaitable[bytes]) -> CleanImage:
    try:
        return await clean_image(resources, await reading)
    except (ImageRefused, FetchFailed) as refusal:
        raise Problem.invalid(POINTER, refusal.code, str(refusal)) from None

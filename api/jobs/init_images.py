"""Images that jobs start from or look at: uploads, earlier images, data in the request, or URLs.

At submission and not in a worker, so that a wrong URL is an answer and not a failed job, and so
that the job's row names the very bytes (their SHA-256) before it runs: what the URL shows tomorrow
changes nothing. The guard allows public addresses over https and no redirects; an operator's
networks for webhooks are not allowed here, since what is fetched can be looked at afterwards.
"""

import asyncio
import io
from collections.abc import Awaitable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from api.context import Resources
from api.core.errors import FieldError, Problem
from api.core.fairness import FairSemaphore, acting_key, on_thread
from api.core.principal import Principal
from api.images.service import read_object
from api.images.uploads import check_uploads, clean_image, discard_uploads, store_upload
from api.jobs.planning import Plan
from api.jobs.submission import JobSubmission
from shared.core.ids import MalformedId, Prefix, decode_id, encode_id
from shared.core.outbound.addresses import LOOPBACK, OutboundPolicy
from shared.core.outbound.client import GuardedClient, OutboundResponse
from shared.core.outbound.url import OutboundError, check_url
from shared.core.settings import Settings
from shared.images import queries as image_queries
from shared.images.formats import ImageRefused, ImageTooLarge
from shared.images.intake import CleanImage, parse_data_url
from shared.images.models import Image, Upload
from shared.jobs.models import DEFAULT_MASK_BLUR

_AT_ONCE = 4
"""Each may hold a whole image, 10 MB, for as long as the deadline."""

_PER_KEY = 2
_DEADLINE_SECONDS = 10.0
_WAIT_SECONDS = 5.0
_HEADERS = {"accept": "image/png, image/jpeg, image/webp"}
_TABLES: dict[Prefix, type[Upload] | type[Image]] = {"upl": Upload, "img": Image}
"""By the prefix of their ids."""


class FetchFailed(Exception):
    """The URL gave no image; `code` and the message are for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ImageFetcher:
    """Fetches users' images in threads of its own, so that slow hosts hold up nothing else."""

    def __init__(self, settings: Settings) -> None:
        self._policy = _policy(settings)
        self._client = GuardedClient(self._policy)
        self._max_bytes = settings.max_upload_bytes
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
        self._semaphore = FairSemaphore("fetches", _AT_ONCE, _PER_KEY)

    async def fetch(self, url: str) -> bytes:
        """The image's bytes as they were sent; nothing is decoded yet.

        Raises:
            FetchFailed: the URL is not allowed, or its host gave no image in time.
            ImageTooLarge: there is more of it than an upload may have.
            Problem: 503 while others' images are being fetched.
        """
        key = acting_key.get()
        try:
            check_url(url, self._policy)
            await asyncio.wait_for(self._semaphore.acquire(key), _WAIT_SECONDS)
        except OutboundError as error:
            raise FetchFailed(error.code, str(error)) from None
        except TimeoutError:
            raise Problem("busy", "Too many initial images are being fetched.") from None
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, self._get, url)
        except OutboundError as error:
            raise FetchFailed(error.code, str(error)) from None
        finally:
            self._semaphore.release(key)
        return self._body_of(answer)

    def _get(self, url: str) -> OutboundResponse:
        return self._client.send(
            "GET", url, _HEADERS, deadline_s=_DEADLINE_SECONDS, max_bytes=self._max_bytes
        )

    def _body_of(self, answer: OutboundResponse) -> bytes:
        if 300 <= answer.status < 400:
            raise FetchFailed("redirect_not_followed", "The URL redirects; give where it leads.")
        if answer.status != 200:
            raise FetchFailed("fetch_refused", f"The URL's host answered {answer.status}.")
        if answer.truncated:
            raise ImageTooLarge(f"It has more than {self._max_bytes} bytes.")
        return answer.body

    def close(self) -> None:
        """Stop the threads; a fetch that is under way ends by its deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _policy(settings: Settings) -> OutboundPolicy:
    if settings.environment == "local":
        return OutboundPolicy(allow_http=True, allowed_networks=LOOPBACK)
    return OutboundPolicy()


def word_of(field: str) -> str:
    """What codes call the image at this place: `mask_image`, or `reference` of `references/0/…`."""
    name, is_in_list, _ = field.partition("/")
    return name.removesuffix("s") if is_in_list else name


@dataclass(frozen=True)
class InitImage:
    """An image in storage that this tenant may start from."""

    ref: str
    s3_key: str
    sha256: str
    size: tuple[int, int]
    """(width, height) in pixels."""
    new_upload: dict[str, Any] | None = None
    """The row to insert with the job, for an image that came inside the request."""
    mask: "InitImage | None" = None
    """Another image, by which a part of it is repainted."""

    def option(self) -> dict[str, str | None]:
        """What a list in the job's options keeps."""
        return {"image": self.ref, "s3_key": self.s3_key, "sha256": self.sha256}

    def column(self) -> dict[str, Any]:
        """What the job's row keeps."""
        kept = {"ref": self.ref, "s3_key": self.s3_key, "sha256": self.sha256}
        return kept | ({"mask": self.mask.column()} if self.mask else {})


async def resolve_init_image(
    resources: Resources,
    principal: Principal,
    reference: str | None,
    field: str = "init_image",
) -> InitImage | None:
    """The image behind this field, or place in a list; None when there is none.

    Raises:
        Problem: 404 for an unknown id or another tenant's; 422 for a malformed reference or a
            refused image; 503 when storage, the database or the decoders are not available.
    """
    if reference is None:
        return None
    if reference[:5].lower() == "data:":
        reading = _from_data_url(resources, reference)
        return await _store_image(resources, principal, reading, field)
    if reference[:8].lower().startswith(("https://", "http://")):
        reading = resources.get(ImageFetcher).fetch(reference)
        return await _store_image(resources, principal, reading, field)
    if all(_parse(prefix, reference) is None for prefix in _TABLES):
        raise Problem.invalid(
            f"/{field}",
            f"malformed_{word_of(field)}",
            "Give an upload id, an image id, a data: URL or an https URL.",
        )
    image = (await find_images(resources, principal, {reference}))[reference]
    if image is None:
        # As for an id in a path; the pointer says that it is the one in the body.
        message = "There is no upload or image with this id."
        missing = FieldError(
            pointer=f"/{field}", code=f"{word_of(field)}_not_found", message=message
        )
        raise Problem("not_found", message, errors=[missing])
    return image


async def check_init_image(
    resources: Resources,
    principal: Principal,
    reference: str | None,
    *,
    needs_size: bool,
    field: str = "init_image",
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
        clean = await clean_data_url(resources, reference, field)
        return clean.width, clean.height
    image = await resolve_init_image(resources, principal, reference, field)
    return image.size if image is not None else None


async def find_images(
    resources: Resources, principal: Principal, references: Set[str]
) -> dict[str, InitImage | None]:
    """The images behind `upl_…` and `img_…` references; None: it is not this tenant's."""
    images: dict[str, InitImage | None] = dict.fromkeys(references)
    if not references:
        return images
    async with resources.tenant_transaction(principal) as session:
        for prefix, table in _TABLES.items():
            ids = [row_id for ref in references if (row_id := _parse(prefix, ref)) is not None]
            if not ids:
                continue
            if table is Upload:
                await session.execute(image_queries.touch_uploads(principal.tenant_id, ids))
            found = image_queries.list_start_images(principal.tenant_id, ids, table)
            for row_id, s3_key, sha256, width, height in (await session.execute(found)).all():
                ref = encode_id(prefix, row_id)
                images[ref] = InitImage(ref, s3_key, sha256, (width, height))
    return images


def _parse(prefix: Prefix, reference: str) -> UUID | None:
    try:
        return decode_id(prefix, reference)
    except MalformedId:
        return None


async def _from_data_url(resources: Resources, url: str) -> bytes:
    return await on_thread(parse_data_url, url, resources.settings.max_upload_bytes)


async def _store_image(
    resources: Resources, principal: Principal, reading: Awaitable[bytes], field: str
) -> InitImage:
    """An image that came with the request becomes an upload, to be inserted with the job."""
    await check_uploads(resources, principal)
    clean = await _clean(resources, reading, field)
    upload = await store_upload(resources, principal, clean)
    return InitImage(
        encode_id("upl", upload["id"]),
        upload["s3_key"],
        upload["sha256"],
        (clean.width, clean.height),
        new_upload=upload,
    )


async def clean_data_url(resources: Resources, url: str, field: str) -> CleanImage:
    """What intake makes of the image in this field.

    Raises:
        Problem: 422 for a refused image; 503 when no decoder is free.
    """
    return await _clean(resources, _from_data_url(resources, url), field)


async def _clean(resources: Resources, reading: Awaitable[bytes], field: str) -> CleanImage:
    try:
        return await clean_image(resources, await reading)
    except (ImageRefused, FetchFailed) as refusal:
        raise Problem.invalid(f"/{field}", refusal.code, str(refusal)) from None


@dataclass(frozen=True)
class JobImages:
    """All images of one submission."""

    start: InitImage | None
    """With its mask."""
    new_uploads: list[dict[str, Any]]
    """The rows to insert with the job."""


async def resolve_images(
    resources: Resources, principal: Principal, submission: JobSubmission, plan: Plan
) -> tuple[JobImages, Plan]:
    """The images of a job, and the plan with them and at the size that the initial one decides.

    Raises:
        Problem: as above; 422 for a mask of another size, or one that leaves nothing to repaint,
            and where a second pass would be too large.
    """
    stored: list[dict[str, Any]] = []
    known: dict[str | None, InitImage | None] = {}

    async def resolve(reference: str | None, field: str) -> InitImage | None:
        if reference in known:  # as a ControlNet that sees the initial image
            return known[reference]
        image = await resolve_init_image(resources, principal, reference, field)
        if image is not None and image.new_upload is not None:
            stored.append(image.new_upload)
        known[reference] = image
        return image

    try:
        start = await resolve(submission.init_image, "init_image")
        if start is not None:
            mask = await resolve(submission.mask_image, "mask_image")
            if mask is not None:
                check_mask_size(mask.size, start.size)
            plan = plan.starting_from(start.size)
            if mask is not None or submission.mask_from_alpha:
                await check_mask(resources, mask or start, plan)
            start = replace(start, mask=mask)
        listed = {place: await resolve(image, place) for place, image in plan.images.items()}
        plan = plan.with_images({place: image.option() for place, image in listed.items() if image})
    except BaseException:  # nobody else knows of them
        await discard_uploads(resources, stored)
        raise
    return JobImages(start, stored), plan


def check_mask_size(mask: tuple[int, int] | None, start: tuple[int, int] | None) -> None:
    """Refuse a mask of another size than the initial image's; None: not known.

    Raises:
        Problem: 422.
    """
    if mask is not None and start is not None and mask != start:
        message = (
            f"The mask has {mask[0]} × {mask[1]} pixels and the initial image "
            f"{start[0]} × {start[1]}; both must have the same."
        )
        raise Problem.invalid("/mask_image", "mask_size", message)


async def check_mask(resources: Resources, image: InitImage, plan: Plan) -> None:
    """Refuse a mask by which nothing would be repainted.

    Raises:
        Problem: 422; 404 and 503 where the image cannot be read.
    """
    stored = await read_object(resources, image.s3_key)
    fault = await on_thread(_mask_fault, stored.body, plan)
    if fault is not None:
        field = "mask_from_alpha" if plan.options.get("mask_from_alpha") else "mask_image"
        raise Problem.invalid(f"/{field}", "empty_mask", f"It {fault}: nothing would be repainted.")


def _mask_fault(body: bytes, plan: Plan) -> str | None:
    """Why a mask, an image of our own making, leaves nothing to repaint."""
    from PIL import Image as Images

    from shared.images.fitting import blurred, fitted, mask_of, repaints

    from_alpha = plan.options.get("mask_from_alpha", False)
    blur = plan.options.get("mask_blur", DEFAULT_MASK_BLUR)
    size = plan.width, plan.height
    with Images.open(io.BytesIO(body), formats=("PNG", "WEBP", "JPEG")) as image:
        mask = mask_of(image, from_alpha=from_alpha)
    if not repaints(mask):
        return "is nowhere transparent" if from_alpha else "is black throughout"
    if not repaints(blurred(fitted(mask, size, plan.resize_mode), blur)):
        return f"is too thin to be seen at {size[0]} × {size[1]} pixels with mask_blur {blur}"
    return None

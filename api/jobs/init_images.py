"""Where img2img starts: an upload, an earlier image, data in the request, or a URL.

At submission and not in a worker, so that a wrong URL is an answer and not a failed job, and so
that the job's row names the very bytes (their SHA-256) before it runs: what the URL shows tomorrow
changes nothing. The guard allows public addresses over https and no redirects; an operator's
networks for webhooks are not allowed here, since what is fetched can be looked at afterwards.
"""

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from api.context import Resources
from api.core.errors import FieldError, Problem
from api.core.fairness import FairGate, acting_key, on_thread
from api.core.principal import Principal
from api.core.quotas import check_uploads
from api.images.service import clean_image, store_upload
from shared.core.ids import MalformedId, from_wire, to_wire
from shared.core.outbound.addresses import LOOPBACK, OutboundPolicy
from shared.core.outbound.client import GuardedClient, OutboundResponse
from shared.core.outbound.url import OutboundError, check_url
from shared.core.settings import Settings
from shared.images import CleanImage, ImageRefused, ImageTooLarge, parse_data_url
from shared.images import queries as image_queries

_AT_ONCE = 4
"""Each may hold a whole picture, 10 MB, for as long as the deadline."""


_PER_KEY = 2


_DEADLINE_SECONDS = 10.0


_PATIENCE_FOR_TURN = 5.0


_HEADERS = {"accept": "image/png, image/jpeg, image/webp"}


class FetchFailed(Exception):
    """The URL gave no picture; `code` and the message are for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ImageFetcher:
    """Fetches users' pictures in threads of its own, so that slow hosts hold up nothing else."""

    def __init__(self, settings: Settings) -> None:
        self._policy = _policy(settings)
        self._client = GuardedClient(self._policy)
        self._max_bytes = settings.max_upload_bytes
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")
        self._turns = FairGate("fetches", _AT_ONCE, _PER_KEY)

    async def fetch(self, url: str) -> bytes:
        """The picture's bytes as they were sent; nothing is decoded yet.

        Raises:
            FetchFailed: the URL is not allowed, or its host gave no picture in time.
            ImageTooLarge: there is more of it than an upload may have.
            Problem: 503 while others' pictures are being fetched.
        """
        key = acting_key.get()
        try:
            check_url(url, self._policy)
            await asyncio.wait_for(self._turns.acquire(key), _PATIENCE_FOR_TURN)
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
            self._turns.release(key)
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
            upload = image_queries.get_upload(principal.tenant_id, row_id)
            if (row := (await session.scalars(upload)).one_or_none()) is not None:
                await session.execute(image_queries.touch_uploads(principal.tenant_id, [row_id]))
                return InitImage(reference, row.s3_key, row.sha256, (row.width, row.height))
            return None
        image = image_queries.get_image(principal.tenant_id, row_id)
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

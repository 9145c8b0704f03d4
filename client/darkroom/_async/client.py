"""The client: one service, one key, and everything that can be asked of it."""

from types import TracebackType
from typing import Literal, Self, Unpack

import httpx2

from darkroom import wire
from darkroom._async.account import AsyncHealthChecks, AsyncKeys, AsyncModels
from darkroom._async.batches import AsyncBatches
from darkroom._async.images import AsyncImages, AsyncPicture
from darkroom._async.jobs import AsyncJobs
from darkroom._async.pages import AsyncPages
from darkroom._async.queues import AsyncQueues
from darkroom._async.sessions import AsyncPrompts, AsyncSessions
from darkroom._async.transport import AsyncTransport, Request
from darkroom._async.uploads import AsyncUploads
from darkroom._async.webhooks import AsyncWebhooks
from darkroom._async.workers import AsyncWorkers
from darkroom.configuration import find_configuration
from darkroom.decoding import decode
from darkroom.types.account import Usage
from darkroom.types.gallery import Hit
from darkroom.types.requests import JobOptions, SearchFilters


class AsyncClient:
    """A client of one Darkroom.

    Use it as a context manager, or close it. One client serves any number of tasks and keeps
    its connections.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        patience: float = 300.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the service; else DARKROOM_URL, else `.darkroom/env` here or above.
            api_key: else DARKROOM_API_KEY, else the same file.
            timeout: seconds until an answer must come, beyond what is asked to wait.
            retries: how many times a request that may be repeated is sent again.
            patience: seconds for which waiting and streams put up with a service that is away.
            transport: how connections are made, e.g. `httpx2.AsyncHTTPTransport(verify=…)`.

        Raises:
            ConfigurationError: there is no address, or no key.
        """
        configuration = find_configuration(
            url, api_key, timeout=timeout, retries=retries, patience=patience
        )
        self.url = configuration.url
        self._transport = AsyncTransport(configuration, transport)
        self.uploads = AsyncUploads(self._transport)
        self.images = AsyncImages(self._transport)
        self.jobs = AsyncJobs(self._transport, self.images, self.uploads)
        self.batches = AsyncBatches(self._transport)
        self.sessions = AsyncSessions(self._transport)
        self.prompts = AsyncPrompts(self._transport)
        self.webhooks = AsyncWebhooks(self._transport)
        self.models = AsyncModels(self._transport)
        self.keys = AsyncKeys(self._transport)
        self.workers = AsyncWorkers(self._transport)
        self.queues = AsyncQueues(self._transport)
        self.health = AsyncHealthChecks(self._transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def generate(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> list[AsyncPicture]:
        """Submit a job, wait for it, and return its pictures in the order of the seeds.

        Args:
            prompt: what to show.
            idempotency_key: see `client.jobs.submit`.
            timeout: seconds to wait; None: as long as it takes. The job itself goes on.
            options: see `JobOptions`.

        Raises:
            JobFailed, JobCanceled, JobExpired: there are no pictures; `error.job` says why.
            StillRunning: `timeout` seconds were over; `error.resource` is the job.
        """
        handle = await self.jobs.submit(prompt, idempotency_key=idempotency_key, **options)
        return await handle.result(timeout)

    def search(
        self,
        q: str | None = None,
        *,
        rank: Literal["relevance", "similarity"] | None = None,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> AsyncPages[Hit]:
        """Pictures whose prompts mean what `q` says, best first.

        Args:
            q: in any language; an exact phrase or a rare word goes before a vague neighbour.
                None: all that the filters leave, newest first.
            rank: by the score, of meaning and words (the default), or by the similarity alone.
            page_size: entries to fetch at a time, 1 to 100.
            after: where to go on: the `next_cursor` of a page.
            filters: see `SearchFilters`.
        """
        query = wire.query({"q": q, "rank": rank, **filters, "limit": page_size})
        return AsyncPages(self._transport, Request("GET", "/v1/search", query), Hit, after)

    async def usage(self) -> Usage:
        """What this key has used and has left."""
        return decode(Usage, await self._transport.json(Request("GET", "/v1/usage")))

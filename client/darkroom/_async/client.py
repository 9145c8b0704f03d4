"""The client: one service, one API key, and all operations."""

from collections.abc import Mapping
from typing import Any, Literal, Self, Unpack

import httpx2

from darkroom import encoding
from darkroom._async.batches import AsyncBatches
from darkroom._async.images import (
    AsyncImageHandle,
    AsyncImages,
    AsyncPrompts,
    AsyncSessions,
    AsyncUploads,
)
from darkroom._async.jobs import AsyncJobs
from darkroom._async.resource import AsyncPages
from darkroom._async.service import (
    AsyncHealthChecks,
    AsyncKeys,
    AsyncLoras,
    AsyncModels,
    AsyncQueues,
    AsyncWorkers,
)
from darkroom._async.transport import AsyncTransport, Request
from darkroom._async.webhooks import AsyncWebhooks
from darkroom.configuration import find_configuration
from darkroom.types.images import Hit
from darkroom.types.requests import JobOptions, SearchFilters
from darkroom.types.service import Usage


class AsyncClient:
    """A client of one Darkroom service.

    Use it as a context manager, or close it. One client serves any number of tasks and reuses
    its connections.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        retry_timeout: float = 300.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the service; else DARKROOM_URL, else `.darkroom/env` here or above.
            api_key: else DARKROOM_API_KEY, else the same file.
            timeout: seconds to wait for an answer, in addition to a requested wait.
            retries: how often an idempotent request is sent again.
            retry_timeout: seconds for which waits and streams tolerate a service that is down.
            transport: how connections are made, e.g. `httpx2.AsyncHTTPTransport(verify=…)`.

        Raises:
            ConfigurationError: there is no address, or no key.
        """
        configuration = find_configuration(
            url, api_key, timeout=timeout, retries=retries, retry_timeout=retry_timeout
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
        self.loras = AsyncLoras(self._transport)
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

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def generate(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> list[AsyncImageHandle]:
        """Submit a job, wait for it, and return its images in the order of the seeds.

        Args:
            prompt: describes the image.
            idempotency_key: see `client.jobs.submit`.
            timeout: seconds to wait; None: as long as it takes. The job itself continues.
            progress: whether to show a bar; by default in notebooks.
            extra_body: see `client.jobs.submit`.
            options: see `JobOptions`.

        Raises:
            JobFailed, JobCanceled, JobExpired: there are no images; `error.job` says why.
            WaitTimeoutError: it did not end within `timeout` seconds; `error.resource` is the job.
        """
        handle = await self.jobs.submit(
            prompt, idempotency_key=idempotency_key, extra_body=extra_body, **options
        )
        return await handle.result(timeout, progress)

    def search(
        self,
        q: str | None = None,
        *,
        rank: Literal["relevance", "similarity"] | None = None,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> AsyncPages[Hit]:
        """Images whose prompts mean what `q` says, best first.

        Args:
            q: in any language; exact phrases and rare words rank above vague matches.
                None: everything that matches the filters, newest first.
            rank: by relevance (meaning and words, the default), or by similarity alone.
            page_size: entries to fetch at a time, 1 to 100.
            after: where to continue: the `next_cursor` of a page.
            filters: see `SearchFilters`.
        """
        encoding.refuse_unknown(filters, SearchFilters)
        query = encoding.query({"q": q, "rank": rank, **filters, "limit": page_size})
        return AsyncPages(self._transport, Request("GET", "/v1/search", query), Hit, after)

    async def usage(self) -> Usage:
        """This key's usage and limits."""
        return await self._transport.fetch(Usage, Request("GET", "/v1/usage"))

# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""The client: one service, one API key, and all operations."""

from collections.abc import Mapping
from typing import Any, Literal, Self, Unpack

import httpx2

from darkroom import encoding
from darkroom._sync.batches import Batches
from darkroom._sync.images import (
    ImageHandle,
    Images,
    Prompts,
    Sessions,
    Uploads,
)
from darkroom._sync.jobs import Jobs
from darkroom._sync.resource import Pages
from darkroom._sync.service import (
    HealthChecks,
    Keys,
    Loras,
    Models,
    Queues,
    Workers,
)
from darkroom._sync.transport import Request, Transport
from darkroom._sync.webhooks import Webhooks
from darkroom.configuration import find_configuration
from darkroom.types.images import Hit
from darkroom.types.requests import JobOptions, SearchFilters
from darkroom.types.service import Usage


class Client:
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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the service; else DARKROOM_URL, else `.darkroom/env` here or above.
            api_key: else DARKROOM_API_KEY, else the same file.
            timeout: seconds to wait for an answer, in addition to a requested wait.
            retries: how often an idempotent request is sent again.
            retry_timeout: seconds for which waits and streams tolerate a service that is down.
            transport: how connections are made, e.g. `httpx2.HTTPTransport(verify=…)`.

        Raises:
            ConfigurationError: there is no address, or no key.
        """
        configuration = find_configuration(
            url, api_key, timeout=timeout, retries=retries, retry_timeout=retry_timeout
        )
        self.url = configuration.url
        self._transport = Transport(configuration, transport)
        self.uploads = Uploads(self._transport)
        self.images = Images(self._transport)
        self.jobs = Jobs(self._transport, self.images, self.uploads)
        self.batches = Batches(self._transport)
        self.sessions = Sessions(self._transport)
        self.prompts = Prompts(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.loras = Loras(self._transport)
        self.models = Models(self._transport)
        self.keys = Keys(self._transport)
        self.workers = Workers(self._transport)
        self.queues = Queues(self._transport)
        self.health = HealthChecks(self._transport)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def generate(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        progress: bool | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **options: Unpack[JobOptions],
    ) -> list[ImageHandle]:
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
        handle = self.jobs.submit(
            prompt, idempotency_key=idempotency_key, extra_body=extra_body, **options
        )
        return handle.result(timeout, progress)

    def search(
        self,
        q: str | None = None,
        *,
        rank: Literal["relevance", "similarity"] | None = None,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> Pages[Hit]:
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
        return Pages(self._transport, Request("GET", "/v1/search", query), Hit, after)

    def usage(self) -> Usage:
        """This key's usage and limits."""
        return self._transport.fetch(Usage, Request("GET", "/v1/usage"))

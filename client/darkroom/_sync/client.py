# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""The client: one service, one key, and everything that can be asked of it."""

from types import TracebackType
from typing import Literal, Self, Unpack

import httpx2

from darkroom import wire
from darkroom._sync.account import HealthChecks, Keys, Models
from darkroom._sync.batches import Batches
from darkroom._sync.images import Images, Picture
from darkroom._sync.jobs import Jobs
from darkroom._sync.pages import Pages
from darkroom._sync.queues import Queues
from darkroom._sync.sessions import Prompts, Sessions
from darkroom._sync.transport import Request, Transport
from darkroom._sync.uploads import Uploads
from darkroom._sync.webhooks import Webhooks
from darkroom._sync.workers import Workers
from darkroom.configuration import find_configuration
from darkroom.decoding import decode
from darkroom.types.account import Usage
from darkroom.types.gallery import Hit
from darkroom.types.requests import JobOptions, SearchFilters


class Client:
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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: of the service; else DARKROOM_URL, else `.darkroom/env` here or above.
            api_key: else DARKROOM_API_KEY, else the same file.
            timeout: seconds until an answer must come, beyond what is asked to wait.
            retries: how many times a request that may be repeated is sent again.
            patience: seconds for which waiting and streams put up with a service that is away.
            transport: how connections are made, e.g. `httpx2.HTTPTransport(verify=…)`.

        Raises:
            ConfigurationError: there is no address, or no key.
        """
        configuration = find_configuration(
            url, api_key, timeout=timeout, retries=retries, patience=patience
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def generate(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        **options: Unpack[JobOptions],
    ) -> list[Picture]:
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
        handle = self.jobs.submit(prompt, idempotency_key=idempotency_key, **options)
        return handle.result(timeout)

    def search(
        self,
        q: str | None = None,
        *,
        rank: Literal["relevance", "similarity"] | None = None,
        page_size: int | None = None,
        after: str | None = None,
        **filters: Unpack[SearchFilters],
    ) -> Pages[Hit]:
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
        return Pages(self._transport, Request("GET", "/v1/search", query), Hit, after)

    def usage(self) -> Usage:
        """What this key has used and has left."""
        return decode(Usage, self._transport.json(Request("GET", "/v1/usage")))

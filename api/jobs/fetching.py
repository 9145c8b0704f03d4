"""Initial images by URL: fetched once, at submission, through the guard for users' URLs.

At submission and not in a worker, so that a wrong URL is an answer and not a failed job, and so
that the job's row names the very bytes (their SHA-256) before it runs: what the URL shows tomorrow
changes nothing. The guard allows public addresses over https and no redirects; an operator's
networks for webhooks are not allowed here, since what is fetched can be looked at afterwards.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from api.fairness import FairGate, acting_key
from api.problems import Problem
from shared.images import ImageTooLarge
from shared.outbound import (
    LOOPBACK,
    GuardedClient,
    OutboundError,
    OutboundPolicy,
    OutboundResponse,
    check_url,
)
from shared.settings import Settings

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

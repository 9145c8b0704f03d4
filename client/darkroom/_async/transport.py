"""HTTP requests and answers: one retry loop, problems as exceptions, streams."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self, TypeVar

import httpx2

from darkroom._async.concurrency import sleep
from darkroom.configuration import Configuration
from darkroom.decoding import decode
from darkroom.errors import (
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    DarkroomError,
    api_error,
)
from darkroom.retries import RetryPolicy, retry_after

T = TypeVar("T")

_CONNECT_SECONDS = 5.0
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
try:
    USER_AGENT = f"darkroom-python/{version('darkroom-client')}"
except PackageNotFoundError:  # run from a source tree
    USER_AGENT = "darkroom-python"


@dataclass(frozen=True)
class Request:
    """A request, which can be sent again as it is."""

    method: str
    path: str
    """Relative to the address of the service; or a full URL, which is sent without the key."""
    query: Sequence[tuple[str, str]] = ()
    json: Any = None
    data: Mapping[str, str] | None = None
    """Form fields sent with `files`."""
    files: Mapping[str, tuple[str, bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool | None = None
    """Whether it is idempotent; None: decided by the method and by an idempotency key."""
    waits: float = 0.0
    """Seconds for which the service was asked to hold the answer."""
    retry_timeout: float | None = None
    """Seconds to keep trying; None: limited by the number of retries instead."""

    @property
    def may_repeat(self) -> bool:
        """Whether it may be sent again although the service may have acted upon it."""
        if self.repeatable is not None:
            return self.repeatable
        return self.method in _REPEATABLE or "Idempotency-Key" in self.headers


class AsyncTransport:
    """Connections to one service with one key."""

    def __init__(
        self, configuration: Configuration, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.configuration = configuration
        timeout = httpx2.Timeout(configuration.timeout, connect=_CONNECT_SECONDS)
        self._http = httpx2.AsyncClient(
            headers={"User-Agent": USER_AGENT}, timeout=timeout, transport=transport
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, request: Request) -> httpx2.Response:
        """The complete answer.

        Raises:
            APIStatusError: the service answered with a problem, after retries too.
            APIConnectionError: it could not be reached, after retries too.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            response = await self._open(request, attempt, started)
            try:
                await response.aread()
            except httpx2.TransportError as failure:
                await self._pause_after_failure(request, failure, attempt, started)
                attempt += 1
                continue
            finally:
                await response.aclose()
            return response

    async def json(self, request: Request) -> Any:
        """The JSON of the answer."""
        return parse_json(await self.send(request))

    async def fetch(self, kind: type[T], request: Request) -> T:
        """The answer as `kind`."""
        return decode(kind, await self.json(request))

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[httpx2.Response, None]:
        """An answer to read as it arrives. Until it begins, failures are retried where possible.

        Raises:
            APIConnectionError: the connection broke while it was read.
            APIResponseValidationError: it was read as events and is not an event stream.
        """
        response = await self._open(request, 0, time.monotonic())
        try:
            yield response
        except httpx2.SSEError as error:
            raise APIResponseValidationError(
                f"{request.path} is not an event stream: {error}"
            ) from error
        except httpx2.TransportError as failure:
            raise connection_error(request, failure) from failure
        finally:
            await response.aclose()

    async def _open(self, request: Request, attempt: int, started: float) -> httpx2.Response:
        """An answer of status < 400, before its body is read."""
        policy = self._policy(request)
        while True:
            try:
                response = await self._http.send(self._build(request), stream=True)
                if response.status_code < 400:
                    return response
                problem, seconds = await _read_problem(response)
            except httpx2.TransportError as failure:
                await self._pause_after_failure(request, failure, attempt, started)
            else:
                pause = policy.after_answer(
                    response.status_code,
                    seconds,
                    repeatable=request.may_repeat,
                    attempt=attempt,
                    elapsed=time.monotonic() - started,
                )
                if pause is None:
                    raise problem
                await sleep(pause)
            attempt += 1

    async def _pause_after_failure(
        self, request: Request, failure: httpx2.TransportError, attempt: int, started: float
    ) -> None:
        pause = self._policy(request).after_failure(
            failure,
            repeatable=request.may_repeat,
            attempt=attempt,
            elapsed=time.monotonic() - started,
        )
        if pause is None:
            raise connection_error(request, failure) from failure
        await sleep(pause)

    def _policy(self, request: Request) -> RetryPolicy:
        return RetryPolicy(self.configuration.retries, request.retry_timeout)

    def _build(self, request: Request) -> httpx2.Request:
        is_ours = request.path.startswith("/")
        headers = dict(request.headers)
        if is_ours:
            headers["Authorization"] = f"Bearer {self.configuration.api_key}"
        seconds = self.configuration.timeout + request.waits
        return self._http.build_request(
            request.method,
            self.configuration.url + request.path if is_ours else request.path,
            params=list(request.query) or None,
            json=request.json,
            data=request.data,
            files=request.files,
            headers=headers,
            timeout=httpx2.Timeout(seconds, connect=_CONNECT_SECONDS),
        )


async def _read_problem(response: httpx2.Response) -> tuple[DarkroomError, float | None]:
    """The exception for an answer of status ≥ 400, and its `Retry-After`."""
    try:
        await response.aread()
    finally:
        await response.aclose()
    try:
        document = response.json()
    except ValueError:
        document = None
    seconds = retry_after(response.headers, datetime.now(UTC))
    return api_error(response.status_code, document, dict(response.headers), seconds), seconds


def connection_error(request: Request, failure: httpx2.TransportError) -> APIConnectionError:
    """The exception of this client for one of httpx2's."""
    kind = APITimeoutError if isinstance(failure, httpx2.TimeoutException) else APIConnectionError
    where = request.path.partition("?")[0]  # the query of a URL may be a signature
    return kind(f"{request.method} {where} got no answer: {str(failure) or type(failure).__name__}")


def parse_json(response: httpx2.Response) -> Any:
    """The body of an answer of status < 400.

    Raises:
        APIResponseValidationError: it is not JSON.
    """
    try:
        return response.json()
    except ValueError as error:
        raise APIResponseValidationError(
            f"{response.request.url.copy_with(query=None)} answered {response.status_code} "
            f"with {response.headers.get('content-type', 'no content type')}, not JSON"
        ) from error

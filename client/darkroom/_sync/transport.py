# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Requests and answers over HTTP: one retry loop, problems as exceptions, streams."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Self

import httpx2

from darkroom._sync.concurrency import sleep
from darkroom.configuration import Configuration
from darkroom.errors import DarkroomError, NoAnswer, TimedOut, UnexpectedAnswer, api_error
from darkroom.retries import RetryPolicy, retry_after

_CONNECT_SECONDS = 5.0
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})
try:
    USER_AGENT = f"darkroom-python/{version('darkroom')}"
except PackageNotFoundError:  # run from a source tree that nobody installed
    USER_AGENT = "darkroom-python"


@dataclass(frozen=True)
class Request:
    """One thing to ask, which can be sent again as it stands."""

    method: str
    path: str
    """Below the address of the service; or a whole URL, which gets no key."""
    query: Sequence[tuple[str, str]] = ()
    json: Any = None
    data: Mapping[str, str] | None = None
    """Form fields beside `files`."""
    files: Mapping[str, tuple[str, bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool | None = None
    """Whether twice does no more than once; None: by the method, and by an idempotency key."""
    waits: float = 0.0
    """Seconds for which the service was asked to hold the answer."""
    patience: float | None = None
    """Seconds to go on trying; None: by the number of retries."""

    @property
    def may_repeat(self) -> bool:
        """Whether it may be sent although it may have been acted upon."""
        if self.repeatable is not None:
            return self.repeatable
        return self.method in _REPEATABLE or "Idempotency-Key" in self.headers


class Transport:
    """Connections to one service with one key."""

    def __init__(
        self, configuration: Configuration, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.configuration = configuration
        timeout = httpx2.Timeout(configuration.timeout, connect=_CONNECT_SECONDS)
        self._http = httpx2.Client(
            headers={"User-Agent": USER_AGENT}, timeout=timeout, transport=transport
        )

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, request: Request) -> httpx2.Response:
        """The whole answer.

        Raises:
            ApiError: the service answered with a problem, and went on doing so.
            NoAnswer: it could not be reached, and went on like that.
        """
        started = time.monotonic()
        attempt = 0
        while True:
            response = self._open(request, attempt, started)
            try:
                response.read()
            except httpx2.TransportError as failure:
                self._pause_after_failure(request, failure, attempt, started)
                attempt += 1
                continue
            finally:
                response.close()
            return response

    def json(self, request: Request) -> Any:
        """The answer's JSON."""
        return parse_json(self.send(request))

    @contextmanager
    def stream(self, request: Request) -> Generator[httpx2.Response, None]:
        """An answer to be read as it comes. Until it begins, what can be retried is retried.

        Raises:
            NoAnswer: the connection broke while it was read.
            UnexpectedAnswer: it was read as events, and is none.
        """
        response = self._open(request, 0, time.monotonic())
        try:
            yield response
        except httpx2.SSEError as error:
            raise UnexpectedAnswer(f"{request.path} is no event stream: {error}") from error
        except httpx2.TransportError as failure:
            raise no_answer(request, failure) from failure
        finally:
            response.close()

    def _open(self, request: Request, attempt: int, started: float) -> httpx2.Response:
        """An answer of status < 400 whose body has not been read."""
        policy = self._policy(request)
        while True:
            try:
                response = self._http.send(self._build(request), stream=True)
                if response.status_code < 400:
                    return response
                problem, told = _read_problem(response)
            except httpx2.TransportError as failure:
                self._pause_after_failure(request, failure, attempt, started)
            else:
                pause = policy.after_answer(
                    response.status_code,
                    told,
                    repeatable=request.may_repeat,
                    attempt=attempt,
                    elapsed=time.monotonic() - started,
                )
                if pause is None:
                    raise problem
                sleep(pause)
            attempt += 1

    def _pause_after_failure(
        self, request: Request, failure: httpx2.TransportError, attempt: int, started: float
    ) -> None:
        pause = self._policy(request).after_failure(
            failure,
            repeatable=request.may_repeat,
            attempt=attempt,
            elapsed=time.monotonic() - started,
        )
        if pause is None:
            raise no_answer(request, failure) from failure
        sleep(pause)

    def _policy(self, request: Request) -> RetryPolicy:
        return RetryPolicy(self.configuration.retries, request.patience)

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


def _read_problem(response: httpx2.Response) -> tuple[DarkroomError, float | None]:
    """The exception that an answer of status ≥ 400 stands for, and its `Retry-After`."""
    try:
        response.read()
    finally:
        response.close()
    try:
        document = response.json()
    except ValueError:
        document = None
    told = retry_after(response.headers, datetime.now(UTC))
    return api_error(response.status_code, document, dict(response.headers), told), told


def no_answer(request: Request, failure: httpx2.TransportError) -> NoAnswer:
    """The exception of this client for one of httpx2."""
    kind = TimedOut if isinstance(failure, httpx2.TimeoutException) else NoAnswer
    where = request.path.partition("?")[0]  # the query of a URL may be a signature
    return kind(f"{request.method} {where} got no answer: {str(failure) or type(failure).__name__}")


def parse_json(response: httpx2.Response) -> Any:
    """The body of an answer of status < 400.

    Raises:
        UnexpectedAnswer: it is no JSON.
    """
    try:
        return response.json()
    except ValueError as error:
        raise UnexpectedAnswer(
            f"{response.request.url.copy_with(query=None)} answered {response.status_code} "
            f"with {response.headers.get('content-type', 'no content type')}, not JSON"
        ) from error

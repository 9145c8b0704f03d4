"""What the parts of the API have in common: paths, requests, lists that fetch their pages."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from darkroom import encoding
from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.encoding import Identified
from darkroom.errors import APIResponseValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class AsyncPage(Generic[T]):
    """One page of a list."""

    data: tuple[T, ...]
    next_cursor: str | None
    """Pass it as `after` for the next page; None on the last."""


class AsyncPages(Generic[T]):
    """A whole list. Iterate over its entries; pages are fetched as needed.

    Nothing is requested until you iterate. Iterating again starts over.
    """

    def __init__(
        self, transport: AsyncTransport, request: Request, kind: type[T], after: str | None = None
    ) -> None:
        self._transport = transport
        self._request = request
        self._kind = kind
        self._after = after

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        async for page in self.pages():
            for entry in page.data:
                yield entry

    async def pages(self) -> AsyncGenerator[AsyncPage[T], None]:
        """The pages, each with the cursor of the next."""
        after = self._after
        while True:
            page = await self._fetch(after)
            yield page
            after = page.next_cursor
            if after is None:
                return

    async def page(self) -> AsyncPage[T]:
        """Only the first page."""
        return await self._fetch(self._after)

    async def take(self, count: int) -> list[T]:
        """The first entries, `count` at most."""
        taken: list[T] = []
        if count < 1:
            return taken
        async for entry in self:
            taken.append(entry)
            if len(taken) == count:
                break
        return taken

    async def all(self) -> list[T]:
        """All entries."""
        return [entry async for entry in self]

    async def _fetch(self, after: str | None) -> AsyncPage[T]:
        request = self._request
        if after is not None:
            request = replace(request, query=[*request.query, ("after", after)])
        document = await self._transport.json(request)
        if not isinstance(document, dict) or not isinstance(document.get("data"), list):
            raise APIResponseValidationError(f"{request.path} did not answer with a list")
        entries = tuple(decode(self._kind, entry) for entry in document["data"])
        return AsyncPage(entries, document.get("next_cursor"))


class AsyncResource:
    """A part of the API whose objects have their ids below one path."""

    _path: str

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def _at(self, resource: str | Identified, *parts: str) -> str:
        """The path of an object, or of something below it."""
        return "/".join((self._path, encoding.segment(resource), *parts))

    async def _get(self, kind: type[T], path: str) -> T:
        return await self._transport.fetch(kind, Request("GET", path))

    async def _post(
        self,
        kind: type[T],
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        files: Mapping[str, tuple[str, bytes]] | None = None,
        repeatable: bool | None = None,
    ) -> T:
        request = Request(
            "POST",
            path,
            encoding.query(query or {}),
            json=None if json is None else encoding.body(json),
            files=files,
            repeatable=repeatable,
        )
        return await self._transport.fetch(kind, request)

    async def _delete(self, kind: type[T], path: str) -> T:
        return await self._transport.fetch(kind, Request("DELETE", path))

    def _list(
        self,
        kind: type[T],
        path: str,
        *,
        page_size: int | None = None,
        after: str | None = None,
        **query: Any,
    ) -> AsyncPages[T]:
        request = Request("GET", path, encoding.query({**query, "limit": page_size}))
        return AsyncPages(self._transport, request, kind, after)

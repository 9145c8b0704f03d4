"""Lists that fetch their pages as they are read."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from darkroom._async.transport import AsyncTransport, Request
from darkroom.decoding import decode
from darkroom.errors import UnexpectedAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class AsyncPage(Generic[T]):
    """A part of a list."""

    data: tuple[T, ...]
    next_cursor: str | None
    """What to give as `after` for the next page; None on the last."""


class AsyncPages(Generic[T]):
    """A whole list. Iterate over its entries; the pages are fetched on the way.

    Nothing is asked before the first entry is wanted. Iterating again begins anew.
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
        """Page by page, each with the cursor of the next."""
        after = self._after
        while True:
            page = await self._fetch(after)
            yield page
            after = page.next_cursor
            if after is None:
                return

    async def page(self) -> AsyncPage[T]:
        """The first page alone."""
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
        """Every entry there is."""
        return [entry async for entry in self]

    async def _fetch(self, after: str | None) -> AsyncPage[T]:
        asked = self._request
        if after is not None:
            asked = replace(asked, query=[*asked.query, ("after", after)])
        document = await self._transport.json(asked)
        if not isinstance(document, dict) or not isinstance(document.get("data"), list):
            raise UnexpectedAnswer(f"{asked.path} answered no list")
        entries = tuple(decode(self._kind, entry) for entry in document["data"])
        return AsyncPage(entries, document.get("next_cursor"))

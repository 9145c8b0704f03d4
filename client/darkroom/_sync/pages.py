# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""Lists that fetch their pages as they are read."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.errors import UnexpectedAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A part of a list."""

    data: tuple[T, ...]
    next_cursor: str | None
    """What to give as `after` for the next page; None on the last."""


class Pages(Generic[T]):
    """A whole list. Iterate over its entries; the pages are fetched on the way.

    Nothing is asked before the first entry is wanted. Iterating again begins anew.
    """

    def __init__(
        self, transport: Transport, request: Request, kind: type[T], after: str | None = None
    ) -> None:
        self._transport = transport
        self._request = request
        self._kind = kind
        self._after = after

    def __iter__(self) -> Generator[T, None]:
        for page in self.pages():
            yield from page.data

    def pages(self) -> Generator[Page[T], None]:
        """Page by page, each with the cursor of the next."""
        after = self._after
        while True:
            page = self._fetch(after)
            yield page
            after = page.next_cursor
            if after is None:
                return

    def page(self) -> Page[T]:
        """The first page alone."""
        return self._fetch(self._after)

    def take(self, count: int) -> list[T]:
        """The first entries, `count` at most."""
        taken: list[T] = []
        if count < 1:
            return taken
        for entry in self:
            taken.append(entry)
            if len(taken) == count:
                break
        return taken

    def all(self) -> list[T]:
        """Every entry there is."""
        return list(self)

    def _fetch(self, after: str | None) -> Page[T]:
        asked = self._request
        if after is not None:
            asked = replace(asked, query=[*asked.query, ("after", after)])
        document = self._transport.json(asked)
        if not isinstance(document, dict) or not isinstance(document.get("data"), list):
            raise UnexpectedAnswer(f"{asked.path} answered no list")
        entries = tuple(decode(self._kind, entry) for entry in document["data"])
        return Page(entries, document.get("next_cursor"))

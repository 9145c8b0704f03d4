# Generated from darkroom/_async by client/make_sync.py (`make client`). Do not edit.
"""What the parts of the API have in common: paths, requests, lists that fetch their pages."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from darkroom import encoding
from darkroom._sync.transport import Request, Transport
from darkroom.decoding import decode
from darkroom.encoding import Identified
from darkroom.errors import APIResponseValidationError

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list."""

    data: tuple[T, ...]
    next_cursor: str | None
    """Pass it as `after` for the next page; None on the last."""


class Pages(Generic[T]):
    """A whole list. Iterate over its entries; pages are fetched as needed.

    Nothing is requested until you iterate. Iterating again starts over.
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
        """The pages, each with the cursor of the next."""
        after = self._after
        while True:
            page = self._fetch(after)
            yield page
            after = page.next_cursor
            if after is None:
                return

    def page(self) -> Page[T]:
        """Only the first page."""
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
        """All entries."""
        return list(self)

    def _fetch(self, after: str | None) -> Page[T]:
        request = self._request
        if after is not None:
            request = replace(request, query=[*request.query, ("after", after)])
        document = self._transport.json(request)
        if not isinstance(document, dict) or not isinstance(document.get("data"), list):
            raise APIResponseValidationError(f"{request.path} did not answer with a list")
        entries = tuple(decode(self._kind, entry) for entry in document["data"])
        return Page(entries, document.get("next_cursor"))


class Resource:
    """A part of the API whose objects have their ids below one path."""

    _path: str

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _at(self, resource: str | Identified, *parts: str) -> str:
        """The path of an object, or of something below it."""
        return "/".join((self._path, encoding.segment(resource), *parts))

    def _get(self, kind: type[T], path: str) -> T:
        return self._transport.fetch(kind, Request("GET", path))

    def _post(
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
        return self._transport.fetch(kind, request)

    def _delete(self, kind: type[T], path: str) -> T:
        return self._transport.fetch(kind, Request("DELETE", path))

    def _list(
        self,
        kind: type[T],
        path: str,
        *,
        page_size: int | None = None,
        after: str | None = None,
        **query: Any,
    ) -> Pages[T]:
        request = Request("GET", path, encoding.query({**query, "limit": page_size}))
        return Pages(self._transport, request, kind, after)

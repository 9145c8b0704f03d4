"""The Python client of Darkroom, for its public HTTP API.

`Client` blocks, `AsyncClient` does not; they have the same methods. `darkroom.errors` has the tree
of exceptions, `darkroom.types` what the service answers and accepts. Everything can be imported
from here, too: `darkroom.NotFoundError`, `darkroom.Job`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from darkroom import errors as errors
from darkroom import types as types
from darkroom.errors import *
from darkroom.types import *

_LAZY = {
    "AsyncClient": "_async.client",
    "AsyncImageHandle": "_async.images",
    "AsyncJobHandle": "_async.jobs",
    "AsyncPage": "_async.resource",
    "AsyncPages": "_async.resource",
    "Client": "_sync.client",
    "ImageHandle": "_sync.images",
    "ImageList": "display",
    "JobHandle": "_sync.jobs",
    "Page": "_sync.resource",
    "Pages": "_sync.resource",
}
"""Imported on first use: `darkroom --help` needs no HTTP client."""

if TYPE_CHECKING:
    from darkroom import webhooks as webhooks
    from darkroom._async.client import AsyncClient as AsyncClient
    from darkroom._async.images import AsyncImageHandle as AsyncImageHandle
    from darkroom._async.jobs import AsyncJobHandle as AsyncJobHandle
    from darkroom._async.resource import AsyncPage as AsyncPage
    from darkroom._async.resource import AsyncPages as AsyncPages
    from darkroom._sync.client import Client as Client
    from darkroom._sync.images import ImageHandle as ImageHandle
    from darkroom._sync.jobs import JobHandle as JobHandle
    from darkroom._sync.resource import Page as Page
    from darkroom._sync.resource import Pages as Pages
    from darkroom.display import ImageList as ImageList
else:  # hidden from type checkers, which would accept every misspelt name
    __all__ = errors.__all__ + types.__all__
    __all__ += ["errors", "types", "webhooks"]
    __all__.extend(_LAZY)

    def __getattr__(name: str) -> Any:
        if name == "webhooks":
            return import_module("darkroom.webhooks")
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"darkroom.{_LAZY[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)

"""The blocking client is what the asynchronous one generates, with the same surface."""

import importlib.util
import inspect
from types import ModuleType
from typing import Any

import pytest

import darkroom
from tests.processes import PROJECT

PATH = PROJECT / "client" / "make_sync.py"


@pytest.fixture(scope="module")
def make_sync() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sync", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_fresh(make_sync: ModuleType) -> None:
    folder = PROJECT / "client" / "darkroom" / "_sync"
    generated = make_sync.derive_all()
    for name, text in generated.items():
        assert (folder / name).read_text("utf-8") == text, f"{name} is stale: run `make client`"
    there = {path.name for path in folder.glob("*.py")}
    assert there == set(generated) | make_sync.BY_HAND


def test_nothing_asynchronous_is_left(make_sync: ModuleType) -> None:
    for path in (PROJECT / "client" / "darkroom" / "_sync").glob("*.py"):
        if path.name in make_sync.BY_HAND:
            continue
        first, _, text = path.read_text("utf-8").partition("\n")
        assert first.startswith("# Generated"), path
        for word in ("async", "await", "Async", "__a"):
            assert word not in text, (path, word)


def surface(thing: Any) -> dict[str, Any]:
    """Public names with their parameters; resources with their own surface."""
    found: dict[str, Any] = {}
    for name in dir(thing):
        if name.startswith("_"):
            continue
        member = getattr(thing, name)
        if callable(member):
            found[name] = list(inspect.signature(member).parameters)
        elif type(member).__module__.startswith("darkroom._"):
            found[name] = surface(member)
    return found


def test_both_clients_offer_the_same() -> None:
    blocking = surface(darkroom.Client("http://x", "drk_a_b"))
    asynchronous = surface(darkroom.AsyncClient("http://x", "drk_a_b"))
    assert asynchronous.pop("aclose") == blocking.pop("close")
    assert blocking == asynchronous
    assert {"submit", "wait", "events", "cancel", "retry"} <= set(blocking["jobs"])


def test_everything_public_is_documented() -> None:
    silent = [
        f"{kind.__name__}.{name}"
        for kind in (getattr(darkroom, name) for name in vars(darkroom)["__all__"])
        if inspect.isclass(kind)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_") and not member.__doc__
    ]
    assert silent == []

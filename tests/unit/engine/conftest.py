"""Before any test module here imports torch: see `worker.engine` for why threads must sleep."""

import worker.engine  # noqa: F401

# isort: split
import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _what_stays() -> None:
    """Toys, and libraries that come with them: the garbage collector has seen them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def float32_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list["weakref.ref[torch.nn.Module]"]]:
    """The parts of models that are copied in the test, while no garbage is collected."""
    copies: list[weakref.ref[torch.nn.Module]] = []
    copy_part = copy.deepcopy

    def noted(part: Any, memo: Any = None) -> Any:
        copied = copy_part(part, memo)
        if isinstance(copied, torch.nn.Module):
            copies.append(weakref.ref(copied))
        return copied

    gc.disable()
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", noted)
        yield copies
    gc.enable()

"""A model that is loaded beside the work, and what those who need it are told."""

import threading

import pytest

from worker.embedding.loading import Loading, ModelNotLoaded


def test_who_needs_it_waits_for_it() -> None:
    go_on = threading.Event()

    def load() -> str:
        go_on.wait(10)
        return "model"

    loading = Loading("toy", load)
    with pytest.raises(ModelNotLoaded, match="still loading"):
        loading.wait(0.0)
    go_on.set()
    assert loading.wait(10) == "model"
    assert loading.wait(0.0) == "model"


def loading_that_fails_once() -> tuple[Loading[str], list[str]]:
    """It pauses for an hour then; and how often it was tried."""
    tries: list[str] = []

    def load() -> str:
        tries.append("try")
        if len(tries) == 1:
            raise OSError("the disk was away")
        return "model"

    loading = Loading("toy", load, 3600.0)
    with pytest.raises(ModelNotLoaded, match="cannot load the embedding model toy"):
        loading.wait(10)
    return loading, tries


def test_what_failed_for_a_passing_reason_is_tried_again_for_the_next_request() -> None:
    loading, tries = loading_that_fails_once()
    loading._again_at = 0.0  # The hour has passed.
    assert loading.wait(10) == "model"
    assert len(tries) == 2


def test_it_is_not_tried_again_at_once() -> None:
    loading, tries = loading_that_fails_once()
    with pytest.raises(ModelNotLoaded, match="cannot load"):
        loading.wait(10)
    assert len(tries) == 1

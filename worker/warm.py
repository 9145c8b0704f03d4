"""What both kinds of workers begin with, for a process that forks them."""

import contextlib

import worker.cpu
import worker.generate  # noqa: F401
from shared.core.settings import get_settings
from worker.search.embedders import preload


def warm() -> None:
    """Load the embedding model, too. Starts no thread and opens no connection."""
    with contextlib.suppress(Exception):  # which the workers will meet, and can say more about
        preload(get_settings())

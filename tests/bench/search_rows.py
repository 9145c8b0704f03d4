"""What a search costs among 50,000 prompts, and how good it is, with real sentence embeddings."""

import os
from collections.abc import Iterator

from tests.bench.row import Row
from tests.bench.search_corpus import distinct_captions
from tests.bench.search_system import (
    fill,
    measure_latency,
    measure_quality,
    measure_recall,
    quality_row,
)
from tests.bench.system import running_system

_PROMPTS = int(os.environ.get("DARKROOM_BENCH_PROMPTS", "50000"))
_JUDGED = 4_000
"""Prompts of the quality set: each of 200 queries is judged against all."""


def rows() -> Iterator[Row]:
    """Quality first, among few; then recall and latency, among all."""
    with running_system() as system:
        library = fill(system, min(_JUDGED, _PROMPTS))
        captions = distinct_captions(library.prompts)
        yield quality_row(measure_quality(library, captions))
    with running_system() as system:
        library = fill(system, _PROMPTS)
        yield measure_recall(library)
        api = system.api()
        system.process(["-m", "worker", "cpu"], "embedding_model_ready")
        yield from measure_latency(library, api)

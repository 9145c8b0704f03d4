"""Where vectors of queries come from, and what happens when they do not."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from shared.core import broker
from tests.integration.search.conftest import CAPTIONS, Team
from tests.integration.search.gallery import Embeddings
from tests.processes import ApiProcess, free_port


@pytest.fixture(scope="module")
def lonely_api(
    environment: dict[str, str], landscapes: Team, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API whose Redis has no worker: its messages are in a database that nobody reads."""
    url = environment["DARKROOM_REDIS_URL"]
    own = {**environment, "DARKROOM_REDIS_URL": f"{url.rpartition('/')[0]}/1"}
    log = tmp_path_factory.mktemp("lonely") / "api.log"
    with ApiProcess(own, free_port(), landscapes.key, Path(log)) as process:
        yield process


def test_without_a_worker_a_query_is_503_and_history_goes_on(lonely_api: ApiProcess) -> None:
    refused = lonely_api.http.get("/v1/search", params={"q": "anything at all"})
    assert (refused.status_code, refused.json()["code"]) == (503, "embedding_unavailable")
    assert "No CPU worker answered" in refused.json()["detail"]
    assert refused.headers["Retry-After"]
    history = lonely_api.http.get("/v1/sessions/odd/images")
    assert (history.status_code, len(history.json()["data"])) == (200, 6)
    assert lonely_api.http.get("/v1/sessions").status_code == 200
    assert lonely_api.http.get("/v1/prompts/recommendations").status_code == 200


def test_a_model_that_cannot_be_loaded_is_named(embeddings: Embeddings) -> None:
    said = embeddings.ask("anything", model="/no/such/model")
    assert "cannot load the embedding model" in said["reason"]


def test_a_query_is_embedded_once(landscapes: Team, redis_client: "redis.Redis") -> None:
    text = "a text that nobody has asked for before"
    landscapes.search(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = broker.embedding_key(landscapes.embeddings.model, digest)
    assert redis_client.persist(key)  # What is written anew has an end again.
    landscapes.search(text)
    assert redis_client.ttl(key) == -1


def test_the_worker_gives_unit_vectors(embeddings: Embeddings) -> None:
    (vector,) = embeddings.embed([CAPTIONS[0]])
    assert len(vector) == 384
    assert sum(number * number for number in vector) == pytest.approx(1, abs=1e-5)


NO_VECTORS = ("no base64 at all", "AAAA", "AAAA" * 3, "", base64.b64encode(b"\xff" * 4 * 384))


@pytest.mark.parametrize("cached", NO_VECTORS, ids=range(len(NO_VECTORS)))
def test_a_cached_vector_that_cannot_be_read_is_made_again(
    landscapes: Team, redis_client: "redis.Redis", cached: str | bytes
) -> None:
    text = f"a text whose vector lies damaged in Redis {uuid4()}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = broker.embedding_key(landscapes.embeddings.model, digest)
    redis_client.set(key, cached)
    assert landscapes.search(text)["data"]
    kept: Any = redis_client.get(key)
    assert len(base64.b64decode(kept)) == 4 * 384

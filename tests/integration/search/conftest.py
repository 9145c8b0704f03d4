"""Tenants with an API, a CPU worker that embeds, and images that nobody had to paint."""

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest
import redis
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from deploy.tenants import create_key
from shared.core.broker import celery_app
from shared.core.ids import encode_id
from shared.core.settings import Settings
from shared.core.tenants import RESOURCES, Tenant
from tests.integration.search.gallery import Embeddings, any_vector, insert_image
from tests.processes import ApiProcess, WorkerProcess, wait_until

_names = itertools.count(1)

CAPTIONS = (
    "snowy mountains at sunset, a lake",
    "snowy peaks at night, stars, pine trees",
    "green hills at noon, the sun, yellow flowers",
    "grassy hills in the rain, a river",
    "desert mountains at midday, a bright sun",
    "sandy dunes at dusk, the moon",
    "purple mountains at dawn, a red house",
    "violet hills at midnight, a full moon",
    "rocky hills in a storm, a cabin",
    "stony peaks at sunrise, a stream, pines",
    "a red house by a still lake, snow-covered hills",
    "a white cottage and red flowers, green hills at noon",
)


class AsksAgain(httpx2.HTTPTransport):
    """Asks once more where no CPU worker has embedded a text in time, as the answer says to.

    It has two seconds, which may be too few on a machine with other things to do.
    """

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The first answer that is another."""

        def answered() -> httpx2.Response | None:
            answer = super(AsksAgain, self).handle_request(request)
            answer.read()
            is_late = answer.status_code == 503 and b"embedding_unavailable" in answer.content
            return None if is_late else answer

        answer: httpx2.Response = wait_until(answered, 60, "an embedding")
        return answer


@dataclass
class Team:
    """A tenant, its client, and a hand that puts images on record."""

    tenant_id: UUID
    http: httpx2.Client
    key: str
    database: sessionmaker[Session]
    embeddings: Embeddings

    def add(self, prompt: str, *, meaning: bool = True, **facts: Any) -> str:
        """An image of this prompt; its wire id. Without meaning no worker is asked."""
        seed = zlib.crc32(prompt.encode())  # `hash` differs from process to process
        vector = self.embeddings.embed([prompt])[0] if meaning else any_vector(seed)
        with self.database.begin() as session:
            return encode_id("img", insert_image(session, self.tenant_id, prompt, vector, **facts))

    def search(self, q: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a search that must succeed."""
        answer = self.http.get("/v1/search", params={"q": q, **parameters})
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def prompts(self, q: str, **parameters: Any) -> list[str]:
        """The prompts found, best first."""
        return [hit["prompt"] for hit in self.search(q, **parameters)["data"]]


@pytest.fixture(scope="session")
def embeddings(
    settings: Settings, redis_client: "redis.Redis", cpu_worker: WorkerProcess
) -> Iterator[Embeddings]:
    """Through the queue; the model is loaded when this is there."""
    with celery_app(settings) as app:
        made = Embeddings(app, redis_client, settings.embedding_model)
        made.embed(["warm"])
        yield made


@pytest.fixture(scope="session")
def make_team(
    api: ApiProcess,
    settings: Settings,
    database: sessionmaker[Session],
    embeddings: Embeddings,
) -> Iterator[Callable[[], Team]]:
    """Makes tenants that have nothing yet."""
    opened: list[httpx2.Client] = []

    def make() -> Team:
        name = f"searchers-{next(_names)}"
        url = settings.database_url.get_secret_value()
        key = create_key(url, tenant=name, name=name, scopes=RESOURCES)
        with database() as session:
            tenant_id = session.scalars(select(Tenant.id).where(Tenant.name == name)).one()
        opened.append(api.client(key, AsksAgain(verify=False)))
        return Team(tenant_id, opened[-1], key, database, embeddings)

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def team(make_team: Callable[[], Team]) -> Team:
    """A tenant that has nothing yet."""
    return make_team()


@pytest.fixture(scope="session")
def landscapes(make_team: Callable[[], Team]) -> Team:
    """A tenant with an image of each caption; nobody changes it."""
    made = make_team()
    for number, caption in enumerate(CAPTIONS):
        made.add(
            caption,
            session_id="odd" if number % 2 else "even",
            seed=number,
            width=64 if number < 6 else 128,
            height=64 if number < 4 else 96,
            kind="img2img" if number == 3 else "txt2img",
            image_model="other" if number == 5 else "sim",
            starred=number in (1, 2),
            metadata={"mood": "calm" if number < 3 else "wild", "shelf": "a:b'c"},
        )
    return made

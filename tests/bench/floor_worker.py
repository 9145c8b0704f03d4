"""The floor of a job: what must last of it, and nothing else, in a bare Celery worker.

The real worker's statements, images, files, objects and events through the same libraries, one
after the other. There is no engine, no lease that is renewed, no deadline, cancellation, retry,
filter, metric or trace: nobody could run it. It takes the jobs of a model of its own.
"""

import sys
import time
from typing import Any
from uuid import UUID

import redis
from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from shared.core import broker
from shared.core.broker import append_event, celery_app
from shared.core.database import autocommit, open_engine, session_factory
from shared.core.settings import Settings, get_settings
from shared.core.storage import Storage
from shared.images.queries import text_sha256
from shared.jobs.models import Job
from shared.jobs.queries import claims, endings
from tests.bench.noop_worker import consume
from worker.engine.interface import GeneratedImage, RunFacts
from worker.engine.simulated import image_of
from worker.jobs.commit import finish_image
from worker.jobs.inputs import JobImages, image_request

MODEL = "floor"
QUEUE = broker.generate_queue(MODEL, broker.INTERACTIVE)

_FACTS = RunFacts(
    model=MODEL,
    content_hash="0" * 64,
    revision=None,
    scheduler_class="EulerDiscreteScheduler",
    scheduler_config={},
    dtype="uint8",
    device="cpu",
    torch_version="none",
    diffusers_version="none",
    cuda_version=None,
    batch_size=1,
)


class Floor:
    """One job from its claim to its commit."""

    def __init__(self, settings: Settings, client: "redis.Redis") -> None:
        self._lease = settings.lease
        self._database: sessionmaker[Session] = session_factory(open_engine(settings))
        self._storage = Storage(settings)
        self._redis = client

    def run(self, job_id: UUID) -> None:
        """Its prompt has to be on record."""
        with autocommit(self._database) as session:
            claim = claims.claim(job_id, "floor", "cpu", self._lease, poison=False)
            job = session.scalars(*claim).one()
        now = time.monotonic()
        pixels = image_of(image_request(job, 0, JobImages(), (), ()))
        image = finish_image(job, 0, GeneratedImage(pixels, _FACTS, 1, 0.0, now, now), "metadata")
        for key, body, kind in (
            (image.row["s3_key"], image.encoded.body, image.encoded.content_type),
            (image.row["thumbnail_s3_key"], image.encoded.thumbnail_webp, "image/webp"),
        ):
            self._storage.put(key, body, kind)
        with autocommit(self._database) as session:
            prompt = text_sha256(job.prompt)
            success = endings.succeed(
                job.id, job.attempt, 0.0, images=[image.row], prompt_sha256=prompt
            )
            done = session.scalars(*success).one()
        with self._redis.pipeline(transaction=False) as pipeline:
            for kind, data in (
                ("job", _state(job)),
                ("progress", {"image_index": 0, "step": 1, "steps": 1}),
                ("image", image.event()),
                ("job", _state(done)),
            ):
                append_event(pipeline, job.id, kind, data)
            pipeline.execute()


def _state(job: Job) -> dict[str, Any]:
    return {"state": str(job.state), "sequence": job.sequence}


def register(app: Celery, floor: Floor) -> None:
    """The task of one job."""

    @app.task(name=broker.GENERATE_TASK)
    def run(job_id: str) -> None:
        floor.run(UUID(job_id))


def main() -> None:
    """Consume until SIGTERM."""
    settings = get_settings()
    app = celery_app(settings)
    client = redis.Redis.from_url(settings.redis_url.get_secret_value())
    register(app, Floor(settings, client))
    consume(app, QUEUE, sys.argv[1])


if __name__ == "__main__":
    main()

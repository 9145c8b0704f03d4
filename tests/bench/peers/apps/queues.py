"""Queues alone: a route that enqueues, and a task that commits one row. No image, no upload.

`python -m tests.bench.peers.apps.queues procrastinate|celery`: the worker; the API is `app`.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
from celery import Celery
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, Field

from tests.bench.peers import work

URL = os.environ["DARKROOM_DATABASE_URL"]
CONCURRENCY = 10
INSERT = "insert into peers.images (job_id) values (%s)"

celery = Celery("queues", broker=os.environ["PEER_REDIS"])
celery.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=True)
in_its_schema = {"options": "-c search_path=procrastinate,public"}
connector = procrastinate.PsycopgConnector(
    conninfo=URL, min_size=4, max_size=CONCURRENCY, kwargs=in_its_schema
)
queue = procrastinate.App(connector=connector)
pool = AsyncConnectionPool(URL, max_size=CONCURRENCY, kwargs={"autocommit": True}, open=False)


@celery.task(name="null")
def celery_null(job_id: str, body: dict[str, Any]) -> None:
    with work.pool().connection() as connection:
        connection.execute(INSERT, (job_id,))


@queue.task(name="null")
async def procrastinate_null(job_id: str, body: dict[str, Any]) -> None:
    async with pool.connection() as connection:
        await connection.execute(INSERT, (job_id,))


class Submission(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    seed: int = Field(ge=0)
    steps: int = Field(20, ge=1, le=100)
    guidance: float = Field(5.0, ge=0, le=50)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with queue.open_async():
        if not await queue.check_connection_async():
            await queue.schema_manager.apply_schema_async()
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/celery", status_code=202)
def submit_to_celery(body: Submission) -> dict[str, str]:
    job_id = str(uuid.uuid4())
    celery_null.apply_async((job_id, body.model_dump()))
    return {"id": job_id}


@app.post("/procrastinate", status_code=202)
async def submit_to_procrastinate(body: Submission) -> dict[str, str]:
    job_id = str(uuid.uuid4())
    await procrastinate_null.defer_async(job_id=job_id, body=body.model_dump())
    return {"id": job_id}


async def run_procrastinate() -> None:
    async with queue.open_async(), pool:
        await queue.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always")


if __name__ == "__main__":
    if sys.argv[1] == "procrastinate":
        asyncio.run(run_procrastinate())
    else:
        options = ("--without-gossip", "--without-mingle", "--loglevel=WARNING")
        celery.worker_main(["worker", "--pool=threads", f"--concurrency={CONCURRENCY}", *options])

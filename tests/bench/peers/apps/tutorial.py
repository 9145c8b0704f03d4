"""FastAPI, Celery, psycopg, boto3 and diffusers, as a careful team writes it in a day.

Late acknowledgements, no prefetching, retries, a queue for each class with the interactive first,
and a task that changes nothing when it runs twice.
"""

import os
import uuid
from typing import Any, Literal

from celery import Celery
from celery.signals import worker_process_init
from fastapi import FastAPI
from psycopg.rows import dict_row
from pydantic import BaseModel, Field

from tests.bench.peers import work

celery = Celery("tutorial", broker=os.environ["PEER_REDIS"])
celery.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_proc_alive_timeout=60,  # a model takes longer to load than the 4 s of the default
    task_ignore_result=True,
    broker_transport_options={"queue_order_strategy": "priority"},
)
app = FastAPI()
pipeline: work.Pipeline


class Submission(BaseModel):
    prompt: str = Field(min_length=1, max_length=4000)
    seed: int = Field(ge=0)
    steps: int = Field(20, ge=1, le=100)
    guidance: float = Field(5.0, ge=0, le=50)
    era: int
    queue: Literal["interactive", "bulk"] = "interactive"


@app.post("/jobs", status_code=202)
def submit(body: Submission) -> dict[str, str]:
    job_id = str(uuid.uuid4())
    with work.pool().connection() as connection:
        connection.execute(
            "insert into peers.jobs (id, prompt, seed, steps, guidance, era)"
            " values (%s, %s, %s, %s, %s, %s)",
            (job_id, body.prompt, body.seed, body.steps, body.guidance, body.era),
        )
    generate.apply_async((job_id,), queue=body.queue)
    return {"id": job_id, "state": "queued"}


@worker_process_init.connect
def load(**_: Any) -> None:
    global pipeline  # noqa: PLW0603 - one model a process
    pipeline = work.make_pipeline()
    work.announce()


@celery.task(name="generate", autoretry_for=(Exception,), max_retries=3)
def generate(job_id: str) -> None:
    with work.pool().connection() as connection:
        job = connection.cursor(row_factory=dict_row).execute(
            "update peers.jobs set state = 'running' where id = %s and state <> 'succeeded'"
            " returning *",
            (job_id,),
        )
        found = job.fetchone()
    if found is None or work.is_stale(found["era"]):
        return
    [image] = pipeline([found["prompt"]], [found["seed"]], found["steps"], found["guidance"])
    work.store(found, image)
    with work.pool().connection() as connection:
        connection.execute("update peers.jobs set state = 'succeeded' where id = %s", (job_id,))

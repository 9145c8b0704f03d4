"""Plain Celery with its best settings: late acknowledgements, rejection on loss, prefetch 1.

The baseline of the trials: the same jobs (a sleep), the same Redis, no job store.
"""

import os
import time

import redis
from celery import Celery

app = Celery("plain", broker=os.environ["DARKROOM_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        # Its default is an hour; this is far below what real jobs would need, in Celery's favour.
        "visibility_timeout": 10,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
    },
)


@app.task(name="plain.run")
def run(job: str, seconds: float) -> None:
    """Work, and say when it began and that it was done."""
    client = redis.Redis.from_url(os.environ["DARKROOM_REDIS_URL"])
    client.rpush(f"began:{job}", time.time())
    time.sleep(seconds)
    client.incr(f"done:{job}")
    client.close()

"""Messages that nobody can read: dropped and counted, at no cost to the worker or to other jobs."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy.orm import Session, sessionmaker

from shared.core import broker
from shared.core.broker import celery_app
from shared.core.settings import Settings
from tests.integration.run_job import test_one_job
from tests.integration.run_job.test_one_job import finished, submit
from tests.processes import WorkerProcess, wait_until

tenant = test_one_job.tenant
QUEUE = broker.generate_queue("sim", broker.INTERACTIVE)
NO_MESSAGES = (
    *(b"", b"not json", b"\xff\xfe", b"null", b"5", b'"text"', b"[]", b"{}", b"[" * 100_000),
    *(b'{"body": "x"}', b'{"properties": null}', b'{"properties": {}, "headers": []}'),
)
WRONG: tuple[Any, ...] = (None, 5, "\ud800", "x", [], {}, [{}], {"a": [1]})


def test_what_is_no_message_is_dropped(
    database: sessionmaker[Session],
    settings: Settings,
    redis_client: "redis.Redis",
    tenant: UUID,
    generate_worker: WorkerProcess,
) -> None:
    before = tags(redis_client)  # of workers that other tests have killed
    for text in NO_MESSAGES:
        redis_client.lpush(QUEUE, text)
    for message in mutants(real_message(settings, redis_client)):
        redis_client.lpush(QUEUE, json.dumps(message))
    assert finished(database, submit(database, settings, tenant)).state == "succeeded"
    wait_until(lambda: not redis_client.llen(QUEUE), 60, "an empty queue")
    wait_until(lambda: tags(redis_client) <= before, 30, "nothing in hand")
    assert finished(database, submit(database, settings, tenant)).state == "succeeded"
    assert generate_worker.child.poll() is None
    log = generate_worker.log.read_text("utf-8", "replace")
    assert "Unrecoverable error" not in log
    assert log.count("worker_ready") == 1, "the consumer was started again"
    assert log.count("unreadable_in_redis") >= len(NO_MESSAGES)


def test_a_worker_starts_though_what_another_held_is_no_message(
    environment: dict[str, str], redis_client: "redis.Redis", tmp_path: Path
) -> None:
    before = tags(redis_client)
    for tag, text in enumerate(NO_MESSAGES):
        redis_client.hset(broker.UNACKED, f"wrong-{tag}", text)
        redis_client.zadd("unacked_index", {f"wrong-{tag}": 1})
    with WorkerProcess(environment, ["generate", "--model", "held"], tmp_path / "log") as worker:
        wait_until(lambda: tags(redis_client) <= before, 30, "nothing in hand")
        assert worker.child.poll() is None


def test_a_stop_signal_that_names_no_job_makes_nobody_deaf(
    redis_client: "redis.Redis", generate_worker: WorkerProcess
) -> None:
    def heard() -> int:
        return generate_worker.log.read_text("utf-8", "replace").count("what=stop_signal")

    for text in (b"nonsense", b"\xff"):
        before = heard()
        wait_until(
            lambda text=text: redis_client.publish(broker.STOP_CHANNEL, text), 10, "a listener"
        )
        wait_until(lambda before=before: heard() > before, 10, "the worker's word on it")


def real_message(settings: Settings, redis_client: "redis.Redis") -> dict[str, Any]:
    """As one lies in the queue, of a job that does not exist."""
    app = celery_app(settings)
    job_id = str(uuid4())
    app.send_task(broker.GENERATE_TASK, args=[job_id], task_id=job_id, queue="captured")
    app.close()
    captured: Any = redis_client.lpop("captured")
    message: dict[str, Any] = json.loads(captured)
    return message


def mutants(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each with one part of it gone, or of another type."""
    for path in paths(message):
        for wrong in (..., *WRONG):
            changed = deepcopy(message)
            # Their tags would all be one.
            changed["properties"]["delivery_tag"] = str(uuid4())
            around: Any = changed
            for name in path[:-1]:
                around = around[name]
            if wrong is ...:
                del around[path[-1]]
            else:
                around[path[-1]] = wrong
            yield changed


def paths(part: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in part.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *rest) for rest in paths(value))


def tags(redis_client: "redis.Redis") -> set[Any]:
    return {*redis_client.hkeys(broker.UNACKED), *redis_client.zrange("unacked_index", 0, -1)}


# --- A checkpoint that cannot be served: one clear sentence, an exit code, and jobs that wait ---


EXIT_CONFIGURATION = 78


def missing(folder: Path) -> None:
    """No folder at all."""


def pickled(folder: Path) -> None:
    """A diffusers folder whose weights are a pickle."""
    unet = folder / "unet"
    unet.mkdir(parents=True)
    (folder / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}'
    )
    (unet / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize("make", [pickled, pytest.param(missing, marks=pytest.mark.long)])
def test_the_worker_says_why_and_leaves(
    make: Callable[[Path], None], environment: dict[str, str], tmp_path: Path
) -> None:
    make(tmp_path / "checkpoint")
    catalogue = tmp_path / "models.toml"
    catalogue.write_text('[[model]]\nname = "bad"\nsource = "./checkpoint"\n')
    worker = WorkerProcess(
        {**environment, "DARKROOM_MODELS_FILE": str(catalogue)},
        ["generate"],
        tmp_path / "worker.log",
    )
    worker.start()
    assert worker.child.wait(90) == EXIT_CONFIGURATION
    said = [line for line in worker.tail().splitlines() if line.startswith("darkroom worker: ")]
    assert len(said) == 1
    assert str(tmp_path / "checkpoint") in said[0]
    assert "Traceback" not in worker.tail()

"""Ray Serve: `@serve.batch` in one replica; the answer comes with the image."""

import asyncio
import sys
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from tests.bench.peers import work


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.5})
class Generate:
    def __init__(self) -> None:
        self.pipeline = work.make_pipeline()
        work.announce()

    # Nearly as long as a batch takes: the next one is formed while one runs, and would be closed
    # half empty.
    @serve.batch(max_batch_size=work.MAX_BATCH, batch_wait_timeout_s=0.7)
    async def generate(self, jobs: list[work.Job]) -> list[dict[str, str]]:
        return await asyncio.to_thread(work.run_batch, self.pipeline, jobs)

    async def __call__(self, request: Request) -> Any:
        return await self.generate(await request.json())  # type: ignore[arg-type]


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _node_ip_address="127.0.0.1",
        _temp_dir=sys.argv[2],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    deployment: Any = Generate
    serve.run(deployment.bind())
    threading.Event().wait()

"""LitServe: a batched LitAPI; the answer comes with the image."""

import sys
from typing import Any

import litserve

from tests.bench.peers import work


class Generate(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = work.make_pipeline()
        work.announce()

    def batch(self, inputs: list[work.Job]) -> list[work.Job]:
        return list(inputs)

    def predict(self, jobs: list[work.Job]) -> list[dict[str, str]]:
        return work.run_batch(self.pipeline, jobs)

    def unbatch(self, output: list[dict[str, str]]) -> list[dict[str, str]]:
        return output


if __name__ == "__main__":
    api = Generate(max_batch_size=work.MAX_BATCH, batch_timeout=0.05)
    server: Any = litserve.LitServer(api, accelerator="cpu", timeout=False, restart_workers=True)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
    )

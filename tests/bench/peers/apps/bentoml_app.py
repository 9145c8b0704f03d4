"""BentoML: a batched task; the answer to a submission comes at once."""

import bentoml

from tests.bench.peers import work


# Requests that wait longer than these limits are refused: the jobs of a queue may wait.
@bentoml.service(workers=1, traffic={"timeout": 3600, "max_concurrency": 10_000})
class Generate:
    def __init__(self) -> None:
        self.pipeline = work.make_pipeline()
        work.announce()

    @bentoml.task(batchable=True, max_batch_size=work.MAX_BATCH, max_latency_ms=3_600_000)
    def generate(self, jobs: list[work.Job]) -> list[dict[str, str]]:
        return work.run_batch(self.pipeline, jobs)

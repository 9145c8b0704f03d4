"""The cells of the table: each puts one load on one started system and tells what came of it."""

import asyncio
import hashlib
import io
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx2
import psutil
from PIL import Image

from tests.bench.http_load import prepare_post, saturate
from tests.bench.peers.systems import STEP_SECONDS, Contender
from tests.bench.peers.work import MAX_BATCH, Job, s3
from tests.bench.row import percentile
from tests.processes import slowness, wait_until

Result = dict[str, float]
_PROMPTS = [
    f"{color} mountains {when}, a lake"
    for color in ("green", "purple", "snowy", "red")
    for when in ("at noon", "at sunset", "at night", "at dawn")
]
_STEPS = (8, 30)
_GUIDANCES = (3.0, 4.0, 5.0, 7.5)
_LOAD = 0.8
_SETTLE = 2.0
"""Seconds at the beginning of a window that do not count: the first batches form."""
_GRACE = 3.0
"""Seconds after the window until what is open counts as late."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    window: float = 10.0
    """Seconds of arrivals."""
    bulk: int = 200
    beside: float = 14.0
    """Seconds of interactive jobs beside them."""
    in_hand: int = 20
    burst: int = 8
    submissions: int = 400


def make_job(
    contender: Contender, rng: random.Random, mixed: bool = False, **fields: object
) -> Job:
    """20 steps at guidance 5, or a mixture of both."""
    return {
        "id": str(uuid.uuid4()),
        "era": contender.bench.era,
        "prompt": rng.choice(_PROMPTS),
        "seed": rng.randrange(1 << 31),
        "steps": rng.randint(*_STEPS) if mixed else 20,
        "guidance": rng.choice(_GUIDANCES) if mixed else 5.0,
        **fields,
    }


@dataclass
class Sender:
    """Sends jobs when they are due, and knows what became of each."""

    contender: Contender
    client: httpx2.AsyncClient
    began: float = field(default_factory=time.time)
    due: dict[str, float] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    """Of the jobs due, as the system names them; LitServe and Ray answer when all is done."""
    refused: int = 0
    tasks: list["asyncio.Task[Any]"] = field(default_factory=list)

    def send(self, job: Job, at: float = 0.0) -> None:
        """Begin to; `at` seconds after the beginning."""
        self.due[job["id"]] = self.began + at
        self.ids[job["id"]] = job["id"]
        self.begin(self._send(job))

    def begin(self, sending: Coroutine[Any, Any, Any]) -> None:
        """Do it beside everything else, until the end of the cell."""
        self.tasks.append(asyncio.create_task(sending))

    async def _send(self, job: Job) -> None:
        await asyncio.sleep(max(0.0, self.due[job["id"]] - time.time()))
        answer = await self.post(self.contender.path, self.contender.body(job))
        if answer is not None:
            self.ids[job["id"]] = self.contender.job_id(job, answer.json())

    async def post(self, path: str, body: object) -> httpx2.Response | None:
        """The answer; None if that is an error, or never comes."""
        try:
            answer = await self.client.post(self.contender.url + path, json=body)
            return answer.raise_for_status()
        except httpx2.HTTPError:
            self.refused += 1
            return None

    def latencies(self) -> tuple[list[float], int]:
        """Seconds from due to stored, and how many are open; these count until now."""
        finished, now = self.contender.finished(self.began - 1), time.time()
        ends = {job_id: finished.get(name) for job_id, name in self.ids.items()}
        found = [(end[0] if end else now) - self.due[job_id] for job_id, end in ends.items()]
        return found, sum(end is None for end in ends.values())

    async def wait(self, seconds: float) -> tuple[list[float], int]:
        """`latencies`, as soon as none is open or the time is over."""
        end = time.time() + seconds
        while (found := self.latencies())[1] and time.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        return found


@asynccontextmanager
async def sending(contender: Contender) -> AsyncIterator[Sender]:
    """A sender; what it still waits for is given up at the end, and so are a peer's jobs."""
    headers = {"Authorization": f"Bearer {contender.bench.servers.key}"}
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(
        headers=headers, limits=limits, timeout=60 * slowness(), trust_env=False
    ) as client:
        sender = Sender(contender, client)
        try:
            yield sender
        finally:
            for task in sender.tasks:
                task.cancel()
            await asyncio.gather(*sender.tasks, return_exceptions=True)
            contender.bench.next_era()
            await asyncio.to_thread(contender.settle)


async def warm(contender: Contender) -> None:
    """Embed every prompt, open the connections, run batches."""
    async with sending(contender) as sender:
        for number, prompt in enumerate(_PROMPTS):
            sender.send(make_job(contender, random.Random(number), prompt=prompt, steps=4))
        _, open_jobs = await sender.wait(45 * slowness())
        assert not open_jobs, f"{open_jobs} jobs of the warm-up did not end"


async def idle(contender: Contender, size: Size, repeat: int) -> Result:
    """Memory (PSS) of its own processes while nothing is asked of it."""
    await asyncio.sleep(2)
    memory = 0
    for each in contender.processes():
        with suppress(psutil.NoSuchProcess):
            memory += each.memory_full_info().pss
    return {"idle_mb": memory / 1e6}


async def steady(contender: Contender, size: Size, repeat: int, mixed: bool) -> Result:
    """Poisson arrivals at 0.8 of what the simulated GPU could do in full batches."""
    rng = random.Random(repeat)
    mean_steps = sum(_STEPS) / 2 if mixed else 20
    rate = _LOAD * MAX_BATCH / (mean_steps * STEP_SECONDS)
    async with sending(contender) as sender:
        at = rng.expovariate(rate)
        while at < size.window:
            sender.send(make_job(contender, rng, mixed), at)
            at += rng.expovariate(rate)
        own, servers = _cpu(contender.processes()), _cpu(contender.bench.server_processes())
        await asyncio.sleep(size.window)
        latencies, open_jobs = await sender.wait(_GRACE)
        own = _cpu(contender.processes()) - own
        servers = _cpu(contender.bench.server_processes()) - servers
        ends = [end - sender.began for end, _ in contender.finished(sender.began).values()]
        counted = sum(_SETTLE <= end < size.window for end in ends)
        late = open_jobs / len(latencies)
        found = {
            "images_per_s": counted / (size.window - _SETTLE),
            "p95_s": percentile(latencies, 0.95),
            "late": late,
        }
        if late < 0.5:  # else it is mostly the cost of jobs that wait
            found["own_cpu_ms"] = 1000 * own / len(ends)
            found["server_cpu_ms"] = 1000 * servers / len(ends)
        return found


async def beside_bulk(contender: Contender, size: Size, repeat: int) -> Result:
    """200 bulk jobs at once, then an interactive one every 1.6 s."""
    rng = random.Random(repeat)
    async with sending(contender) as sender:
        for path, body in contender.bulk([make_job(contender, rng) for _ in range(size.bulk)]):
            sender.begin(sender.post(path, body))
        at = 1.0
        while at < size.beside:
            sender.send(make_job(contender, rng, queue="interactive"), at)
            at += 1.6
        await asyncio.sleep(size.beside)
        latencies, open_jobs = await sender.wait(size.beside / 2)
        images = len(contender.finished(sender.began)) / (time.time() - sender.began)
        late = open_jobs / len(latencies)
        return {"p50_s": percentile(latencies, 0.5), "late": late, "images_per_s": images}


async def killed(contender: Contender, size: Size, repeat: int, everything: bool) -> Result:
    """SIGKILL after the first image of 20: what is stored in the end, and who was told else."""
    rng = random.Random(repeat)
    async with sending(contender) as sender:
        for _ in range(size.in_hand):
            sender.send(make_job(contender, rng))
        while (open_jobs := sender.latencies()[1]) == size.in_hand:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.sleep(5 * STEP_SECONDS)
        contender.kill(everything)
        await asyncio.to_thread(contender.revive)
        patience = contender.recovery_seconds * slowness()
        last = time.time()
        while open_jobs and time.time() < last + patience:
            await asyncio.sleep(0.2)
            before, open_jobs = open_jobs, sender.latencies()[1]
            last = time.time() if open_jobs < before else last
        finished = size.in_hand - open_jobs
        return {"finished": finished, "told": min(open_jobs, sender.refused)}


async def burst(contender: Contender, size: Size, repeat: int) -> Result:
    """The demo model: two images alone, then 8 at once with these two among them."""
    rng = random.Random(repeat)
    jobs = [make_job(contender, rng, guidance=4.0) for _ in range(size.burst)]
    alone = [await _make(contender, [job]) for job in jobs[:2]]
    seconds, pixels = await _make(contender, jobs)
    return {
        "alone_s": min(seconds for seconds, _ in alone),
        "images_per_s": size.burst / seconds,
        "same": [pixels[0] for _, pixels in alone] == pixels[:2],
    }


async def _make(contender: Contender, jobs: Sequence[Job]) -> tuple[float, list[str]]:
    """Seconds until the last is stored; the SHA-256 of each one's pixels."""
    async with sending(contender) as sender:
        for job in jobs:
            sender.send({**job, "id": str(uuid.uuid4()), "era": contender.bench.era})
        latencies, open_jobs = await sender.wait(50 * slowness())
        assert not open_jobs, f"{open_jobs} of {len(jobs)} images did not come"
        finished = contender.finished(sender.began - 1)
        return max(latencies), [_pixels(finished[name][1]) for name in sender.ids.values()]


def _pixels(key: str) -> str:
    stored = s3().get_object(Bucket=os.environ["DARKROOM_S3_BUCKET"], Key=key)["Body"].read()
    return hashlib.sha256(Image.open(io.BytesIO(stored)).convert("RGB").tobytes()).hexdigest()


async def queue(contender: Contender, size: Size, repeat: int) -> Result:
    """Submissions while no worker runs, then null jobs of a worker that finds them waiting."""
    return await asyncio.to_thread(_fill_and_drain, contender, size)


def _fill_and_drain(contender: Contender, size: Size) -> Result:
    job = make_job(contender, random.Random(0), steps=1)
    key, body = contender.bench.servers.key, contender.body(job)
    request = prepare_post(contender.url, contender.path, key, body)
    began, extra = time.time(), size.submissions // 4
    saturate(contender.url, request, 8, extra)
    load = saturate(contender.url, request, 8, size.submissions)
    total = size.submissions + extra
    contender.start_worker()
    wait_until(lambda: len(contender.finished(began)) >= total, 40, f"{total} null jobs")
    # The first fifth goes into opening connections and embedding the prompt.
    ends = sorted(end for end, _ in contender.finished(began).values())[extra:]
    return {
        "submissions_per_s": load.rate,
        "null_jobs_per_s": (len(ends) - 1) / (ends[-1] - ends[0]),
    }


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds, those of ended children included where they were waited for."""
    total = 0.0
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            total += sum(each.cpu_times()[:4])
    return total


Cell = Callable[[Contender, Size, int], Coroutine[Any, Any, Result]]
CELLS: dict[str, dict[str, Cell]] = {
    "gpu": {
        "idle": idle,
        "uniform": partial(steady, mixed=False),
        "mixed": partial(steady, mixed=True),
        "bulk": beside_bulk,
        "kill": partial(killed, everything=False),
        "kill all": partial(killed, everything=True),
    },
    "demo": {"demo idle": idle, "burst": burst},
    "null": {"queue": queue},
}
"""By what the system runs; those of one start follow each other."""
IN_ONE_REPEAT = {"kill": 0, "kill all": 1}
"""Counted, not timed; each takes half a minute."""

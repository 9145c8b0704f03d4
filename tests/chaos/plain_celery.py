"""The first three trials with plain Celery on the same machine, for comparison."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import redis

from deploy.local.servers import EmbeddedServers
from tests.chaos.result import Result, quantiles
from tests.processes import PROJECT, wait_until

_AT_ONCE = 4
_JOB_SECONDS = 2.0


class Plain:
    """A Redis and plain Celery workers on it."""

    def __init__(self, servers: EmbeddedServers, folder: Path) -> None:
        self._environment = {**os.environ, "DARKROOM_REDIS_URL": servers.redis_url}
        os.environ["DARKROOM_REDIS_URL"] = servers.redis_url
        self._folder = folder
        self.redis = redis.Redis.from_url(servers.redis_url, decode_responses=True)
        self._workers: list[subprocess.Popen[bytes]] = []
        from tests.chaos import plain_worker

        self._app = plain_worker.app

    def start(self, count: int) -> list[subprocess.Popen[bytes]]:
        """Start workers and wait until they consume."""
        started = []
        for _ in range(count):
            name = f"w{uuid4().hex[:6]}"
            log = self._folder / f"{name}.log"
            command = [sys.executable, "-m", "celery", "-A", "tests.chaos.plain_worker", "worker"]
            options = ["--pool=prefork", "--concurrency=1", f"--hostname={name}@%h", "-l", "INFO"]
            with log.open("wb") as output:
                worker = subprocess.Popen(
                    [*command, *options, "--without-gossip", "--without-mingle"],
                    cwd=PROJECT,
                    env=self._environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            started.append((worker, log))
        for _, log in started:
            wait_until(lambda log=log: " ready." in log.read_text(), 60, "plain Celery")
        self._workers += [worker for worker, _ in started]
        return [worker for worker, _ in started]

    def submit(self, count: int, seconds: float) -> list[str]:
        """Send jobs; their ids."""
        jobs = [uuid4().hex for _ in range(count)]
        for job in jobs:
            self._app.send_task("plain.run", args=[job, seconds])
        return jobs

    def signal(self, workers: list[subprocess.Popen[bytes]], which: signal.Signals) -> None:
        """To each worker with its children."""
        for worker in workers:
            os.killpg(worker.pid, which)
        if which is signal.SIGKILL:
            for worker in workers:
                worker.wait()

    def done(self, job: str) -> int:
        """How often it was done."""
        return int(self.redis.get(f"done:{job}") or 0)

    def begins(self, job: str) -> list[float]:
        """When its runs began, by the wall clock."""
        return [float(moment) for moment in self.redis.lrange(f"began:{job}", 0, -1)]

    def wait_done(self, jobs: list[str], seconds: float) -> None:
        """Wait until all are done, or for so long."""
        deadline = time.monotonic() + seconds
        while not all(self.done(job) for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.2)

    def close(self) -> None:
        """Kill what is left."""
        for worker in self._workers:
            if worker.poll() is None:
                self.signal([worker], signal.SIGKILL)


def compare(folder: Path, n: int) -> list[Result]:
    """T1, T2 and T3 with plain Celery."""
    folder.mkdir(parents=True)
    results = []
    with EmbeddedServers(folder / "home", durable=False) as servers:
        for trial in (_t1, _t2, _t3):
            servers.redis.flush()
            plain = Plain(servers, folder)
            try:
                results.append(trial(plain, n))
            finally:
                plain.close()
    return results


def _t1(plain: Plain, n: int) -> Result:
    result = Result("T1 plain Celery", "SIGKILL mid-job, worker restarts (visibility 10 s)", 0, n)
    reruns = []
    while result.n < n:
        workers = plain.start(_AT_ONCE)
        jobs = plain.submit(_AT_ONCE, _JOB_SECONDS)
        wait_until(lambda jobs=jobs: all(plain.begins(job) for job in jobs), 30, "the jobs")
        killed_at = time.time()
        plain.signal(workers, signal.SIGKILL)
        rescuers = plain.start(_AT_ONCE)
        plain.wait_done(jobs, 60)
        for job in jobs:
            later = [moment for moment in plain.begins(job) if moment > killed_at]
            reruns += [min(later) - killed_at] if later else []
            result.lost += plain.done(job) == 0
            result.duplicated += plain.done(job) > 1
        plain.signal(rescuers, signal.SIGKILL)
        result.n += _AT_ONCE
    result.jobs = result.n
    result.recovery = quantiles(reruns)
    return result


def _t2(plain: Plain, n: int) -> Result:
    result = Result("T2 plain Celery", "SIGSTOP an idle worker, submit, SIGKILL it", 0, n)
    jobs: list[str] = []
    while result.n < n:
        workers = plain.start(_AT_ONCE)
        plain.signal(workers, signal.SIGSTOP)
        jobs += plain.submit(_AT_ONCE, 0.05)
        time.sleep(0.2)
        plain.signal(workers, signal.SIGKILL)
        result.n += _AT_ONCE
    plain.start(2)
    plain.wait_done(jobs, 45)
    result.jobs = len(jobs)
    result.lost = sum(plain.done(job) == 0 for job in jobs)
    result.duplicated = sum(plain.done(job) > 1 for job in jobs)
    return result


def _t3(plain: Plain, n: int) -> Result:
    result = Result("T3 plain Celery", "SIGSTOP mid-job, a rival finishes, SIGCONT", 0, n)
    while result.n < n:
        workers = plain.start(_AT_ONCE)
        jobs = plain.submit(_AT_ONCE, _JOB_SECONDS)
        wait_until(lambda jobs=jobs: all(plain.begins(job) for job in jobs), 30, "the jobs")
        plain.signal(workers, signal.SIGSTOP)
        rivals = plain.start(_AT_ONCE)
        plain.wait_done(jobs, 60)
        plain.signal(workers, signal.SIGCONT)
        time.sleep(_JOB_SECONDS + 2)
        result.lost += sum(plain.done(job) == 0 for job in jobs)
        result.duplicated += sum(plain.done(job) > 1 for job in jobs)
        plain.signal([*workers, *rivals], signal.SIGKILL)
        result.n += _AT_ONCE
    result.jobs = result.n
    result.notes.append("a zombie's result counts as a second one: nothing fences it")
    return result

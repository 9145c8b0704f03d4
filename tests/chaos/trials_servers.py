"""Trials of what the workers stand on: the API dies, Redis forgets, Postgres and S3 go away."""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
from sqlalchemy import select

from shared.jobs.models import Job
from tests.chaos.checker import check
from tests.chaos.fleet import Worker
from tests.chaos.proxy import Answer, Judge, Verdict
from tests.chaos.result import Result, quantiles
from tests.chaos.system import System
from tests.chaos.two_hosts import TwoHosts
from tests.processes import free_port, slowness, wait_until

COMMITS = (b"COMMIT", b"simulated GPU", b"image/png")
"""What a client sends to Postgres that commits: claims and successes are statements that commit
themselves, and these values are theirs alone."""
FULL_DEVICE = Path("/dev/full")
"""Linux's disk that is always full."""
ALL = ("postgres", "redis", "s3")
LEASE = {"DARKROOM_LEASE": "PT10S", "DARKROOM_HEARTBEAT": "PT2S"}
FEW_THREADS = {"DARKROOM_WORKER_THREADS": "2"}


def t5_api_killed(folder: Path, n: int) -> Result:
    """The API dies between its commit and its publish; the client retries with the same key."""
    result = Result("T5", "API killed between commit and publish", 0, 100)
    crashed = folder / "crashed"
    crashed.mkdir(parents=True)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        system.fleet.start("w1")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(
            base_url=url, headers=dict(system.api.http.headers), timeout=30, trust_env=False
        ) as http:
            while result.n < n:
                api = system.fleet.start(
                    "api",
                    "api",
                    wait=False,
                    port=port,
                    crash_at="before_publish",
                    crashed=str(crashed),
                )
                wait_until(lambda: _answers(http), 60, "the API")
                key = {"Idempotency-Key": str(uuid4())}
                body = {"prompt": f"image {random.random()}", "steps": 5}
                try:
                    http.post("/v1/jobs", json=body, headers=key)
                except httpx2.TransportError:
                    result.n += 1
                api.wait_gone(10)
                # Another replica of the API takes the client's retry.
                again = system.api.http.post("/v1/jobs", json=body, headers=key)
                assert again.status_code == 202, again.text
                result.demand(
                    again.headers.get("Idempotency-Replayed") == "true", "the retry made a new job"
                )
                system.note(again.json())
        system.wait_all(60)
        result.judge(check(system))
        with system.database.begin() as session:
            rows = session.execute(select(Job.created_at, Job.started_at)).all()
    result.demand(len(rows) == result.n, f"{len(rows)} jobs for {result.n} submissions")
    result.recovery = quantiles([(row[1] - row[0]).total_seconds() for row in rows if row[1]])
    result.notes.append("recovery is the time from submission to the start of the job")
    result.demand(result.recovery["p99"] < 6, "the publish delay's p99 is not below 6 s")
    return result


def t6_flushed(folder: Path, n: int) -> Result:
    """FLUSHALL with n jobs queued."""
    result = Result("T6 flush", f"Redis FLUSHALL with {n} queued", 1, 1)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: system.submit(n // 4, steps=5), range(4)))
        workers = [system.fleet.start(f"w{k}") for k in range(2)]
        wait_until(lambda: system.count("succeeded") > n // 20, 60, "the first jobs")
        system.servers.redis.flush()
        began = time.monotonic()
        queue = "generate.sim.interactive"
        wait_until(lambda: system.redis.llen(queue) > 0, 30, "the queue")
        result.recovery = quantiles([time.monotonic() - began])
        system.wait_all(600)
        result.judge(check(system))
        result.demand(all(worker.alive for worker in workers), "a worker died")
    result.notes.append("recovery is the time until the queue is filled again")
    return result


def t6_redis_killed(folder: Path, n: int) -> Result:
    """Redis is killed n times under load."""
    result = Result("T6 kill", "Redis killed under load", n, 50)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        workers = [system.fleet.start(f"w{k}") for k in range(2)]
        resumed = []
        for _ in range(n):
            system.submit(2, steps=30)
            system.servers.redis.kill()
            # A submission while Redis is down is accepted all the same.
            down = system.submit(1, steps=5)
            system.servers.redis.start()
            began = time.monotonic()
            wait_until(lambda job=down[0]: system.job(job).attempt > 0, 60, "the job")
            resumed.append(time.monotonic() - began)
        system.wait_all(120)
        result.judge(check(system))
        result.demand(all(worker.alive for worker in workers), "a worker died")
    result.recovery = quantiles(resumed)
    result.notes.append("a job was submitted while Redis was down each time, and accepted")
    return result


def t6_half_open(folder: Path, seconds: float) -> Result:
    """The workers' connections to Redis fall silent without being closed."""
    result = Result("T6 half-open", f"Redis connections half-open for {seconds:.0f} s", 1, 1)
    with System(folder, behind=("redis",)) as system:
        system.fleet.start("cpu", "cpu")
        workers = [system.fleet.start(f"w{k}") for k in range(2)]
        system.submit(8, steps=300)
        wait_until(lambda: system.count("running") >= 4, 30, "running jobs")
        system.proxies["redis"].silent = True
        time.sleep(seconds)
        during = system.submit(4, steps=5)
        system.proxies["redis"].silent = False
        began = time.monotonic()
        system.wait_all(180)
        result.recovery = quantiles([time.monotonic() - began])
        result.judge(check(system))
        result.demand(all(worker.alive for worker in workers), "a worker died")
        result.demand(all(system.job(job).state == "succeeded" for job in during), "a stuck worker")
    result.notes.append("recovery is the time until all jobs had ended")
    return result


def t6_full(folder: Path, n: int) -> Result:
    """Redis is out of memory while more jobs end than the worker has threads."""
    result = Result("T6 full", "Redis out of memory while jobs end", n, 20)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1", environment=FEW_THREADS)
        resumed = [seconds for _ in range(n) if (seconds := full_redis(system)) is not None]
        system.wait_all(60)
        result.judge(check(system))
        result.demand(worker.alive, "the worker died")
    result.recovery = quantiles(resumed)
    result.notes.append("recovery is the time until a job that was submitted afterwards began")
    return result


def t6_read_only(folder: Path, n: int, seconds: float) -> Result:
    """Redis is a replica for a while, as the old leader is after a failover."""
    result = Result("T6 read-only", f"Redis read-only for {seconds:.0f} s", n, 3)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        worker = system.fleet.start("w1")
        resumed = []
        for _ in range(n):
            read_only_redis(system, seconds)
            began = time.monotonic()
            [job] = system.submit(1, steps=5)
            wait_until(lambda job=job: system.job(job).attempt > 0, 60, "the job")
            resumed.append(time.monotonic() - began)
        system.wait_all(60)
        result.judge(check(system))
        result.demand(worker.alive, "the worker died, and its warm model with it")
    result.recovery = quantiles(resumed)
    result.notes.append("the same process, with its warm model, continues")
    return result


def full_redis(system: System, patience: float = 30) -> float | None:
    """Jobs end while Redis takes nothing; how long a job waits that is submitted afterwards."""
    during = system.submit(4, steps=200)
    system.wait_running(during[0])
    system.redis.config_resetstat()
    system.redis.config_set("maxmemory", 1)
    try:
        wait_until(lambda: all(system.job(job).finished_at for job in during[:2]), 60, "two ends")
        wait_until(lambda: _settled(system, during[:2]), 30, "their acknowledgements")
    finally:
        system.redis.config_set("maxmemory", 0)
    began = time.monotonic()
    after = system.submit(1, steps=5)
    deadline = began + patience * slowness()
    while time.monotonic() < deadline:
        if system.job(after[0]).attempt:
            return time.monotonic() - began
        time.sleep(0.02)
    return None


def _settled(system: System, jobs: Sequence[UUID]) -> bool:
    """Whether their messages are acknowledged, or Redis has refused as many acknowledgements."""
    if _refused(system) >= len(jobs):
        return True
    kept = system.redis.hvals("unacked")
    return not any(str(job).encode() in message for job in jobs for message in kept)


def _refused(system: System) -> int:
    """How many deletions from a hash, which nothing but acknowledgements make, were refused."""
    known: dict[str, Any] = system.redis.info("commandstats")
    return int(known.get("cmdstat_hdel", {}).get("rejected_calls", 0))


def read_only_redis(system: System, seconds: float, ends: Worker | None = None) -> None:
    """While it is so a job is in hand, and another is submitted; or until a worker has ended."""
    [before] = system.submit(1, steps=60)
    system.wait_running(before)
    system.redis.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        system.submit(1, steps=5)
        ends.wait_gone(60) if ends else time.sleep(seconds)
    finally:
        system.redis.execute_command("REPLICAOF", "NO", "ONE")


def t7_commit_cut(folder: Path, n: int) -> Result:
    """A commit reaches Postgres, its answer does not reach the worker."""
    result = Result("T7 commit", "COMMIT sent and the answer cut", 0, 100)
    with System(folder, behind=("postgres",)) as system:
        # The dispatcher, too, runs behind the proxy.
        system.fleet.start("cpu", "cpu")
        system.fleet.start("w1")
        proxy = system.proxies["postgres"]
        proxy.judge = _sometimes(COMMITS, 0.25, Verdict.CUT_ANSWER)
        began = time.monotonic()
        while proxy.cuts < n and time.monotonic() - began < 240:
            system.submit(4, steps=5)
            wait_until(lambda: system.watch_ends() < 12, 60, "progress")
        proxy.judge = lambda _: Verdict.FORWARD
        system.wait_all(60)
        result.n = proxy.cuts
        result.judge(check(system))
    result.notes.append("a quarter of all commits: claims, successes, heartbeats, the dispatcher's")
    return result


def t7_restarts(folder: Path, n: int) -> Result:
    """Postgres is restarted under load; the API says 503 meanwhile, never 500."""
    result = Result("T7 restart", "Postgres restarted, or killed, under load", n, 100)
    answers: Counter[int] = Counter()
    slowest = 0.0
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        system.fleet.start("w1")
        over = threading.Event()

        def client() -> None:
            nonlocal slowest
            while not over.wait(0.15):
                began = time.monotonic()
                body = {"prompt": f"image {random.random()}", "steps": 20, "seed": 7}
                answer = system.api.http.post("/v1/jobs", json=body)
                slowest = max(slowest, time.monotonic() - began)
                answers[answer.status_code] += 1
                if answer.status_code == 202:
                    system.note(answer.json())
                elif "retry-after" not in answer.headers:
                    result.violations.append(f"{answer.status_code} without Retry-After")

        thread = threading.Thread(target=client)
        thread.start()
        resumed = []
        try:
            for turn in range(n):
                time.sleep(random.uniform(0.5, 1.5))
                server = system.servers.postgres
                server.kill() if turn % 2 else server.stop()
                time.sleep(random.uniform(0, 1.0))
                server.start()
                began = time.monotonic()
                done = system.count("succeeded")
                wait_until(lambda done=done: system.count("succeeded") > done, 60, "a commit")
                resumed.append(time.monotonic() - began)
        finally:
            over.set()
            thread.join()
        system.wait_all(120)
        result.judge(check(system))
    result.recovery = quantiles(resumed)
    result.demand(set(answers) <= {202, 503}, f"the API answered {dict(answers)}")
    result.notes.append(f"API: {dict(answers)}, slowest {slowest:.1f} s; half of them SIGKILL")
    return result


def t8_storage(folder: Path, seconds: float) -> list[Result]:
    """S3 away for a while; refusing a twentieth of all writes; slow."""
    results = []
    with System(folder, behind=("s3",)) as system:
        system.fleet.start("cpu", "cpu")
        system.fleet.start("w1")
        proxy = system.proxies["s3"]

        def trial(name: str, fault: str, jobs: int, how: str) -> None:
            result = Result(name, fault, 1, 1)
            system.evict()
            system.submit(jobs, steps=20)
            if how == "down":
                proxy.refusing = True
                proxy.cut_all()
                time.sleep(seconds)
                proxy.refusing = False
            began = time.monotonic()
            system.wait_all(120)
            result.recovery = quantiles([time.monotonic() - began])
            result.judge(check(system))
            result.demand(result.wasted_runs == 0, f"{result.wasted_runs} GPU reruns")
            results.append(result)

        trial("T8 down", f"S3 down for {seconds:.0f} s", 20, "down")
        busy = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        proxy.judge = _sometimes((b"PUT ",), 0.05, Answer(busy))
        trial("T8 errors", "5 % of S3 writes refused with 503", 200, "errors")
        proxy.judge = lambda _: Verdict.FORWARD
        proxy.delay = 1.0
        trial("T8 slow", "each chunk to S3 takes 1 s", 10, "slow")
        proxy.delay = 0.0
    return results


def t14_full_disk(folder: Path, n: int) -> Result:
    """The disk of `make run` is full when a worker that died is to be started again."""
    result = Result("T14", "disk of the local stack full while a worker is restarted", n, 10)
    with System(folder) as system:
        system.fleet.start("cpu", "cpu")
        resumed = []
        for turn in range(n):
            system.evict()
            supervisor = full_disk(system, folder / f"kept-{turn}")
            began = time.monotonic()
            system.wait_all(90)
            resumed.append(time.monotonic() - began)
            result.judge(check(system))
            result.demand(supervisor.alive, "the supervisor ended")
            supervisor.kill()  # Its worker dies with it: the next turn's jobs are not for this one.
    result.recovery = quantiles(resumed)
    result.notes.append("recovery is from room on the disk to the end of the jobs that waited")
    return result


def t15_two_hosts(folder: Path, n: int, seconds: float) -> Result:
    """Workers on another host, behind a bad line that is cut while they run jobs."""
    fault = f"workers on another host: 200 ms, 5 % loss, partitions of {seconds:.0f} s"
    result = Result("T15", fault, n, 5)
    with (
        TwoHosts() as hosts,
        System(folder, behind=ALL, listen=hosts.listen, environment=LEASE) as system,
    ):
        system.fleet.start("cpu", "cpu", environment=system.environment)
        there = [system.fleet.start(f"w{k}", namespace=hosts.there) for k in (1, 2)]
        hosts.delay, hosts.loss = 0.1, 0.05
        resumed = []
        for _ in range(n):
            [before] = system.submit(1, steps=300)
            system.submit(7, steps=20)
            system.wait_running(before)
            hosts.partitioned = True
            # A worker on this side takes over what the others cannot renew.
            rival = system.fleet.start("rival", environment=system.environment)
            time.sleep(seconds)
            hosts.partitioned = False
            began = time.monotonic()
            rival.send(signal.SIGTERM)
            rival.wait_gone(60)
            [after] = system.submit(1, steps=20)
            wait_until(lambda after=after: system.job(after).finished_at, 120, "a job over there")
            resumed.append(time.monotonic() - began)
        system.wait_all(120)
        result.judge(check(system))
        workers = {each.worker for job in system.history.accepted for each in system.attempts(job)}
        result.demand(any(worker.alive for worker in there), "the workers died")
        result.demand(len(workers) > 1, f"only {workers} ran jobs")
    result.recovery = quantiles(resumed)
    result.notes.append(f"{hosts.dropped} of {hosts.dropped + hosts.carried} packets lost")
    return result


def full_disk(system: System, home: Path, defects: Sequence[str] = ()) -> Worker:
    """A kept worker dies on a full disk, with jobs to come; then there is room again.

    Returns its supervisor.
    """
    name = home.name
    kept = system.fleet.start(name, "supervisor", wait=False, home=str(home), broken=list(defects))
    system.submit(1, steps=5)
    wait_until(lambda: system.watch_ends() == 0, 60, "a job of the kept worker")
    record = home / "run" / "worker.json"
    half = record.with_suffix(".half")
    half.symlink_to(FULL_DEVICE)
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    system.submit(2, steps=5)
    wait_until(lambda: "No space left on device" in kept.said(), 30, "a full disk")
    half.unlink()
    return kept


def _sometimes(markers: Sequence[bytes], share: float, verdict: Verdict | Answer) -> Judge:
    def judge(chunk: bytes) -> Verdict | Answer:
        marked = any(marker in chunk for marker in markers)
        return verdict if marked and random.random() < share else Verdict.FORWARD

    return judge


def _answers(http: httpx2.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False

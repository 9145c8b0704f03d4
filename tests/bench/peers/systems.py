"""The systems under test: how each is started, asked, killed and stopped."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import httpx2
import psutil
import psycopg

from deploy.local.home import Home
from deploy.local.process import Forked, Program
from deploy.local.workers import CAN_FORK, Libraries
from shared.core.ids import decode_id
from tests.bench.peers.environments import Environments
from tests.bench.peers.work import SIDE, Job
from tests.bench.system import System
from tests.processes import PROJECT, ApiProcess, Process, WorkerProcess, free_port, wait_until

STEP_SECONDS = 0.04
_DEPLOY = PROJECT / "deploy"
_MODELS = {
    "gpu": ("tenth", f"simulated:{STEP_SECONDS}"),
    "null": ("null", "simulated:0"),
    "demo": ("demo", str(_DEPLOY / "demo_model" / "checkpoint")),
}
"""What a system runs: its name in Darkroom's catalogue, and the peers' `PEER_MODEL`."""
_APPS = "tests.bench.peers.apps"


@dataclass
class Bench:
    """What all systems of a run share."""

    servers: System
    environments: Environments
    database: "psycopg.Connection[Any]"
    era: int = 0

    def next_era(self) -> None:
        """From now on, the peers drop jobs of earlier cells."""
        self.era += 1
        Path(self.servers.environment["PEER_ERA"]).write_text(str(self.era))

    def server_processes(self) -> list[psutil.Process]:
        """Postgres, Redis and the S3 server."""
        records = (self.servers.folder / "home" / "run").glob("*.json")
        roots = [psutil.Process(json.loads(record.read_text())["pid"]) for record in records]
        return [each for root in roots for each in (root, *root.children(recursive=True))]


class Contender(ABC):
    """One system. Its worker is what the model runs in; some have no other process."""

    name: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[str]
    """For the page."""
    path: ClassVar[str] = "/jobs"
    recovery_seconds: ClassVar[float] = 20.0
    """After so long without an image, what a kill has left is lost."""
    demo_threads: ClassVar[int] = 2
    finished_sql: ClassVar[str] = (
        "select job_id, extract(epoch from min(finished_at))::float8, min(s3_key)"
        " from peers.images where finished_at >= to_timestamp(%s) group by 1"
    )

    def __init__(self, bench: Bench, model: str) -> None:
        self.bench = bench
        self.model, peer_model = _MODELS[model]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="darkroom-", dir="/tmp"))  # short, for sockets
        self.environment = {**bench.servers.environment, "PEER_MODEL": peer_model}
        self.worker: Process
        self._demo = model == "demo"
        self._roots: list[Process] = []
        self._seen: set[psutil.Process] = set()

    def start_api(self) -> None:  # noqa: B027 - not every system has one
        """Start what takes jobs where that is not the worker."""

    @abstractmethod
    def start_worker(self) -> None:
        """Set `self.worker`; return when it holds the model."""

    def run(self, *arguments: str, **variables: str) -> Process:
        """Start `python ARGUMENTS` in the peer's own environment."""
        environment = {**self.environment, **variables, "PYTHONPATH": str(PROJECT)}
        environment["HOME"] = str(self.folder)  # some write there
        if self._demo:
            environment["OMP_NUM_THREADS"] = str(self.demo_threads)
        python = str(self.bench.environments.python(self.name))
        return self.start(Process(environment, arguments, self.log(), python))

    def start(self, process: Process) -> Process:
        """Start it, and remember to stop it."""
        process.start()
        self._roots.append(process)
        return process

    def log(self) -> Path:
        """A new file: what an earlier process said must not count."""
        return self.folder / f"process-{len(self._roots)}.log"

    def wait_http(self, path: str, process: Process) -> None:
        """Wait until it answers something better than 5xx."""

        def answers() -> bool:
            assert process.child.poll() is None, f"{self.name} ended:\n{process.tail()}"
            with suppress(httpx2.HTTPError):
                return httpx2.get(self.url + path, trust_env=False).status_code < 500
            return False

        wait_until(answers, 60, f"{self.name} at {path}")

    def processes(self) -> list[psutil.Process]:
        """All that it started and that still runs."""
        for process in self._roots:
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.child.pid)
                self._seen.update((root, *root.children(recursive=True)))
        return [each for each in self._seen if each.is_running()]

    def kill(self, everything: bool) -> None:
        """SIGKILL the process that holds the model, or its worker's whole container."""
        self.processes()
        root = psutil.Process(self.worker.child.pid)
        victims = [root, *root.children(recursive=True)]
        _, said, pid = self.worker.log.read_text("utf-8", "replace").rpartition("model_loaded ")
        if not everything:
            victims = [psutil.Process(int(pid.split()[0]))] if said else [root]
        _kill(victims)

    def revive(self) -> None:
        """Start the worker again if it is gone, as Compose or Kubernetes does."""
        with suppress(subprocess.TimeoutExpired):  # a process of its own looks after its worker
            self.worker.child.wait(1)
            self.start_worker()

    def settle(self) -> None:
        """Return when nothing of an earlier cell is left: a peer drops what it has not begun."""
        time.sleep(1.5)

    def stop(self) -> None:
        """End it, and whatever it has left running."""
        found = self.processes()
        for process in self._roots:
            process.stop(8)
        _kill(found)
        shutil.rmtree(self.folder, ignore_errors=True)

    def body(self, job: Job) -> dict[str, Any]:
        """The JSON of a submission."""
        return job

    def job_id(self, job: Job, answer: Any) -> str:
        """As `finished` names it."""
        return str(job["id"])

    def bulk(self, jobs: Sequence[Job]) -> Sequence[tuple[str, dict[str, Any]]]:
        """(path, body) of the requests that submit jobs which may wait."""
        return [(self.path, self.body({**job, "queue": "bulk"})) for job in jobs]

    def finished(self, since: float) -> dict[str, tuple[float, str]]:
        """When each job that has finished since then did, by the database's clock; its S3 key."""
        rows = self.bench.database.execute(self.finished_sql, (since,)).fetchall()
        return {job_id: (at, key) for job_id, at, key in rows}


def _kill(processes: Sequence[psutil.Process]) -> None:
    for each in processes:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(processes, 5)


class _Fork(Forked):
    """With the rest of `subprocess.Popen` that `Process` uses."""

    returncode = None

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Worker(WorkerProcess):
    """A worker as `make run` has it."""

    def __init__(self, libraries: Libraries, arguments: Sequence[str], log: Path) -> None:
        super().__init__({}, arguments, log)
        self._libraries = libraries

    def start(self) -> None:
        self.log.touch()
        self._libraries.start()
        program = Program(
            self.log.stem, self._arguments, {}, self.log, self.log.with_suffix(".json")
        )
        self._child = cast(Any, _Fork(self._libraries.fork(program).pid))


class Darkroom(Contender):
    """The API, a CPU worker and a generate worker, as `darkroom-server up` starts them."""

    name = "darkroom"
    title = "Darkroom"
    settings = "as shipped; the bulk is a batch of 200"
    path = "/v1/jobs"
    recovery_seconds = 45.0  # a lease of 30 s
    finished_sql = (
        "select job_id::text, extract(epoch from jobs.finished_at)::float8, s3_key"
        " from jobs join images on job_id = jobs.id"
        " where state = 'succeeded' and jobs.finished_at >= to_timestamp(%s)"
    )

    def start_api(self) -> None:
        if self._demo:
            self.environment["DARKROOM_MODELS_FILE"] = str(_DEPLOY / "models.toml")
        api = ApiProcess(self.environment, self.port, self.bench.servers.key, self.log())
        self.start(api)
        api.wait_ready()
        self._home = Home(self.folder / "home")
        environment = {**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"}
        self._libraries = Libraries(self._home, environment)
        self._start("cpu").wait_ready()

    def start_worker(self) -> None:
        self.worker = worker = self._start("generate", "--model", self.model)
        worker.wait_ready()

    def _start(self, *arguments: str) -> WorkerProcess:
        worker = WorkerProcess(self.environment, arguments, self.log())
        if CAN_FORK:
            worker = _Worker(self._libraries, arguments, self.log())
        self.start(worker)
        return worker

    def processes(self) -> list[psutil.Process]:
        if self._libraries.running:
            self._seen.add(psutil.Process(self._libraries.pid))
        return super().processes()

    def stop(self) -> None:
        super().stop()
        self._libraries.stop()
        self._home.close()

    def settle(self) -> None:
        unfinished = "select from jobs where state in ('queued', 'running') limit 1"
        execute = self.bench.database.execute
        wait_until(lambda: execute(unfinished).rowcount == 0, 30, "the end of the jobs")

    def body(self, job: Job) -> dict[str, Any]:
        same = {name: job[name] for name in ("prompt", "seed", "steps")}
        size = {"width": SIDE, "height": SIDE, "guidance_scale": job["guidance"]}
        return {**same, **size, "model": self.model, "session_id": "bench"}

    def job_id(self, job: Job, answer: Any) -> str:
        return str(decode_id("job", answer["id"]))

    def bulk(self, jobs: Sequence[Job]) -> Sequence[tuple[str, dict[str, Any]]]:
        items = [self.body(job) for job in jobs]
        session = {item.pop("session_id") for item in items}.pop()
        return [("/v1/batches", {"items": items, "session_id": session})]


class App(Contender):
    """A FastAPI application with a worker behind a queue."""

    app: ClassVar[str]

    def start_api(self) -> None:
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning")
        self.wait_http("/docs", self.run("-m", "uvicorn", f"{_APPS}.{self.app}:app", *options))

    def job_id(self, job: Job, answer: Any) -> str:
        return str(answer["id"])


class Tutorial(App):
    name = "tutorial"
    title = "FastAPI + Celery tutorial"
    settings = (
        "`acks_late`, `reject_on_worker_lost`, `prefetch_multiplier=1`, `proc_alive_timeout=60`,"
        " one process for one GPU, the interactive queue first; one thread for the demo model"
    )
    demo_threads = 1
    app = "tutorial"

    def start_worker(self) -> None:
        options = ("--concurrency", "1", "--queues", "interactive,bulk", "--loglevel", "WARNING")
        self.worker = self.run("-m", "celery", "-A", f"{_APPS}.tutorial:celery", "worker", *options)
        self.worker.wait_for_log("model_loaded")


class Procrastinate(App):
    name = "procrastinate"
    title = "procrastinate alone"
    settings = "a task that commits one row; ten at once, ended ones deleted; queue in Postgres"
    path = "/procrastinate"
    app = "queues"

    def start_worker(self) -> None:
        self.worker = self.run("-m", f"{_APPS}.queues", self.name)


class Celery(Procrastinate):
    name = "celery"
    title = "Celery alone"
    settings = "a task that commits one row; ten threads, `acks_late`, no results; queue in Redis"
    path = "/celery"


class Server(Contender):
    """A serving framework: one command; the model runs in a process below it."""

    command: ClassVar[tuple[str, ...]]
    ready: ClassVar[str]
    variables: ClassVar[dict[str, str]] = {}

    def start_worker(self) -> None:
        places = {"port": self.port, "folder": self.folder}
        variables = {name: value.format(**places) for name, value in self.variables.items()}
        self.worker = self.run(*(part.format(**places) for part in self.command), **variables)
        self.worker.wait_for_log("model_loaded")
        self.wait_http(self.ready, self.worker)


class LitServe(Server):
    name = "litserve"
    title = "LitServe"
    settings = "`max_batch_size=8`, `batch_timeout=0.05`, `timeout=False`, `restart_workers=True`"
    path = "/predict"
    command = ("-m", f"{_APPS}.litserve_app", "{port}")
    ready = "/health"


class BentoML(Server):
    name = "bentoml"
    title = "BentoML"
    settings = (
        "`@bentoml.task(batchable=True, max_batch_size=8)` without limits of latency and"
        " concurrency, `workers=1`; served locally, its queue is in memory"
    )
    path = "/generate/submit"
    command = (
        *("-m", "bentoml", "serve", f"{_APPS}.bentoml_app:Generate"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    )
    ready = "/readyz"
    variables: ClassVar = {"BENTOML_DO_NOT_TRACK": "True"}

    def body(self, job: Job) -> dict[str, Any]:
        return {"jobs": [job]}


class RayServe(Server):
    name = "ray"
    title = "Ray Serve"
    settings = "`@serve.batch(max_batch_size=8, batch_wait_timeout_s=0.7)`, one replica"
    path = "/"
    command = ("-m", f"{_APPS}.ray_app", "{port}", "{folder}")
    ready = "/-/healthz"
    variables: ClassVar = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it listens on every interface
        **{"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"},
    }


class InvokeAI(Server):
    name = "invokeai"
    title = "InvokeAI"
    settings = (
        "its queue and a node that does the peers' work; interactive jobs beside bulk with"
        " `prepend`; one thread for the demo model, which its own nodes cannot load"
    )
    path = "/api/v1/queue/default/enqueue_batch"
    demo_threads = 1
    command = ("-c", "from invokeai.app.run_app import run_app; run_app()", "--root", "{folder}")
    ready = "/api/v1/app/version"
    variables: ClassVar = {"INVOKEAI_HOST": "127.0.0.1", "INVOKEAI_PORT": "{port}"}

    def start_worker(self) -> None:
        node = self.folder / "nodes" / "peer"
        node.mkdir(parents=True, exist_ok=True)
        (node / "__init__.py").write_text(f"from {_APPS}.invokeai_node import *\n", "utf-8")
        super().start_worker()

    def body(self, job: Job) -> dict[str, Any]:
        node = {"id": "only", "type": "peer_generate", "job": json.dumps(job)}
        graph = {"id": job["id"], "nodes": {"only": node}, "edges": []}
        first = job.get("queue") == "interactive"
        return {"batch": {"graph": graph, "runs": 1}, "prepend": first}


SERVING = (Darkroom, Tutorial, LitServe, BentoML, RayServe, InvokeAI)
QUEUES = (Darkroom, Tutorial, Procrastinate, Celery)

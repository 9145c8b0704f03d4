"""The trials' own way into a process: the real one, with a cheap embedder, and faults on request.

Production code carries no switch for any of this: crash points and broken builds are wrapped
around its functions here, in a process that only a trial starts.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery.worker.request import Request
from kombu.transport.redis import QoS, Transport
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from shared.core.logging import configure_logging
from shared.core.model_catalog import load_catalog
from shared.core.settings import Settings, get_settings
from shared.images.models import Image
from shared.jobs.models import Job
from shared.jobs.queries import endings
from tests.chaos import two_hosts
from worker import generate
from worker.core import consumer
from worker.core.consumer import ResilientQoS
from worker.engine.simulated import SimulatedBackend, SimulatedSpeed
from worker.jobs import claim, run
from worker.jobs.lease import LeaseRenewer
from worker.maintenance.leader import Dispatcher

CRASH_POINTS = (
    "before_claim",
    "after_claim",
    "mid_step",
    "after_upload",
    "before_commit",
    "after_commit",
    "before_ack",
)


class CheapEmbedder:
    """Unit vectors from a hash: loading sentence-transformers takes longer than a whole trial."""

    def __init__(self, settings: Settings) -> None:
        self.model_name = "chaos"
        self._size = settings.embedding_dimensions

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text."""
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        digest = hashlib.sha512(text.encode()).digest()
        numbers = [digest[n % 64] + 1.0 for n in range(self._size)]
        length = math.sqrt(sum(number * number for number in numbers))
        return [number / length for number in numbers]


def run_process(role: str, options: dict[str, Any]) -> None:
    """Become a `generate` or `cpu` worker, the `api`, or the `supervisor` of a worker.

    Options: `clock` (seconds by which the wall clock is wrong), `tick` (seconds that each tick of
    the simulated GPU takes, instead of the catalogue's), `crash_at` (a crash point, where
    the process dies once for each job; `crashed` is the folder that remembers which), `poison` (a
    seed that kills whoever draws it), `broken` (names of `BROKEN_BUILDS`), `port` of the API,
    `home` of the supervisor, `namespace` of another host.
    """
    if namespace := options.get("namespace"):
        two_hosts.enter(namespace)
    if shift := options.get("clock"):
        _shift_clock(float(shift))
    if tick := options.get("tick"):
        _tick_in(float(tick))
    if point := options.get("crash_at"):
        CrashPoint(point, Path(options["crashed"])).install()
    if "poison" in options:
        _install_poison(int(options["poison"]))
    for defect in options.get("broken", ()):
        BROKEN_BUILDS[defect]()
    settings = get_settings()
    configure_logging(settings)
    if role == "cpu":
        from worker import cpu

        cpu.run_cpu_worker(settings)
    elif role == "api":
        import uvicorn

        from api.app import create_app

        uvicorn.run(create_app, factory=True, port=options["port"], log_level="warning")
    elif role == "supervisor":
        _supervise(Path(options["home"]))
    else:
        generate.Embedder = CheapEmbedder  # type: ignore[assignment,misc]
        generate.run_generate_worker(settings, [load_catalog(settings.models_file).default])


def _supervise(home: Path) -> None:
    """Keep a worker of the trials alive as `make run` keeps its own."""
    from deploy.local.applications import Application
    from deploy.local.home import Home
    from deploy.local.service import Restarter

    code = "from tests.chaos.entry import run_process; run_process('generate', {})"
    with Home(home) as opened:
        part = Application("worker", ["-c", code], home=opened, environment=os.environ)
        part.start()
        restarter, stop = Restarter(part), threading.Event()
        while not stop.wait(0.1):
            if message := restarter.check(stop):
                sys.stdout.write(f"{message}\n")
                sys.stdout.flush()


def _shift_clock(seconds: float) -> None:
    """What Python calls the wall clock is wrong; the monotonic clock never is."""
    honest = time.time
    time.time = lambda: honest() + seconds


def _tick_in(seconds: float) -> None:
    """So slow that a job is still in hand, however late a fault comes; others are quick."""
    from_source = SimulatedSpeed.from_source

    def other_speed(source: str) -> SimulatedSpeed:
        return replace(from_source(source), tick_seconds=seconds)

    SimulatedSpeed.from_source = other_speed  # type: ignore[method-assign,assignment]


class CrashPoint:
    """A place in the code where the process is killed, once for each job."""

    def __init__(self, name: str, crashed: Path) -> None:
        self._name = name
        self._crashed = crashed

    def install(self) -> None:
        """Wrap the function that the point is named for."""
        from api.core.publisher import JobPublisher

        installers: dict[str, Callable[[], None]] = {
            "before_claim": lambda: self._before(claim, "_claim", lambda a: a[1]),
            "after_claim": lambda: self._after(claim, "_claim", lambda _, job: job and job.id),
            "mid_step": lambda: self._before(SimulatedBackend, "tick", _seed_in_mid_step),
            "after_upload": lambda: self._after(run, "upload", lambda a, _: a[2].job_id),
            "before_commit": lambda: self._before(run, "commit", lambda a: a[2].id),
            "after_commit": lambda: self._after(run, "commit", lambda a, _: a[2].id),
            "before_ack": lambda: self._before(Request, "acknowledge", lambda a: a[0].id),
            "before_publish": lambda: self._before(JobPublisher, "publish", lambda a: a[1].id),
        }
        installers[self._name]()

    def _before(self, owner: Any, name: str, subject: Callable[[tuple[Any, ...]], Any]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._die_once(subject(args))
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    def _after(self, owner: Any, name: str, subject: Callable[[Any, Any], Any]) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._die_once(subject(args, result))
            return result

        setattr(owner, name, wrapped)

    def _die_once(self, subject: object) -> None:
        if subject is None:
            return
        try:
            (self._crashed / f"{self._name}-{subject}").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def _seed_in_mid_step(args: tuple[Any, ...]) -> int | None:
    return next((row.request.seed for row in args[2] if row.step), None)


def _install_poison(seed: int) -> None:
    tick = SimulatedBackend.tick

    def poisoned(self: Any, shape: Any, rows: Sequence[Any], *args: Any) -> Any:
        if any(row.request.seed == seed and row.step for row in rows):
            os.kill(os.getpid(), signal.SIGKILL)
        return tick(self, shape, rows, *args)

    SimulatedBackend.tick = poisoned  # type: ignore[method-assign]


# --- Builds that are broken on purpose, to see whether the checker bites -------------------------


def _without_fencing() -> None:
    """Nobody looks at leases, and the last commit wins: `complete` asks for the id alone."""
    LeaseRenewer.renew = lambda _: None  # type: ignore[method-assign]
    endings._held = lambda job_id, _: update(Job).where(Job.id == job_id)

    class Overwriting:
        @staticmethod
        def from_select(columns: Sequence[str], rows: Any) -> Any:
            statement = insert(Image).from_select(columns, rows)
            return statement.on_conflict_do_update(
                index_elements=[Image.job_id, Image.index],
                set_={
                    name: statement.excluded[name] for name in ("id", "attempt", "s3_key", "sha256")
                },
            )

    endings.insert = lambda _: Overwriting  # type: ignore[return-value]


def _with_no_dispatcher() -> None:
    """Nobody looks after leases and lost messages."""
    Dispatcher._round = lambda _: None  # type: ignore[method-assign]


def _with_early_acknowledgement() -> None:
    """The job is called done before its images are where they belong."""
    later: list[Callable[[], None]] = []
    upload, commit = run.upload, run.commit

    def put_off(*args: Any) -> None:
        later.append(lambda: upload(*args))

    def commit_first(*args: Any, **kwargs: Any) -> Job:
        done = commit(*args, **kwargs)
        time.sleep(60)  # the worker is killed before that
        while later:
            later.pop()()
        return done

    run.upload, run.commit = put_off, commit_first


def _with_slots_held() -> None:
    """kombu's own acknowledgement: what Redis refuses keeps its slot."""
    for name in ("append", "ack", "reject"):
        setattr(ResilientQoS, name, getattr(QoS, name))


def _with_fatal_refusals() -> None:
    """A refusal of Redis is no lost connection: Celery stops the worker."""
    harden, errors = consumer.harden, Transport.connection_errors

    def harden_less(celery: Any) -> None:
        harden(celery)
        Transport.connection_errors = errors

    consumer.harden = harden_less


def _with_a_fatal_disk() -> None:
    """A record that cannot be written ends the supervisor."""
    from deploy.local import process

    write = process._write_record

    def write_or_end(*args: Any) -> None:
        try:
            write(*args)
        except OSError as error:
            raise RuntimeError(str(error)) from error

    process._write_record = write_or_end


BROKEN_BUILDS: dict[str, Callable[[], None]] = {
    "no fencing": _without_fencing,
    "no dispatcher": _with_no_dispatcher,
    "early ack": _with_early_acknowledgement,
    "held slots": _with_slots_held,
    "fatal refusals": _with_fatal_refusals,
    "fatal disk": _with_a_fatal_disk,
}


if __name__ == "__main__":
    run_process(sys.argv[1], json.loads(sys.argv[2]))

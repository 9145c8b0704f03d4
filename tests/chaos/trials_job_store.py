"""Trials of the job store alone: random histories against a model, and races over bad
connections."""

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Self
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from deploy.local.servers import EmbeddedServers
from migrations.commands import upgrade
from shared.core import tenants
from shared.core.database import session_factory
from shared.core.ids import new_id
from shared.core.settings import with_driver
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job, JobAttempt
from shared.jobs.queries import claims, endings
from tests.chaos.job_store_machine import JobStoreMachine
from tests.chaos.proxy import Proxy, Verdict
from tests.chaos.result import Result
from tests.jobs import accept, image_columns
from worker.jobs.commit import commit_success
from worker.jobs.inputs import PromptRows
from worker.jobs.lease import Lease, LeaseLost, retry_database

FAULTS = (0.0, 0.05, 0.10)
_CUTS_PER_RACE = 20
"""Then the line is good: the last commit of all, tried again every two seconds, takes some twenty
steps of which none may be cut."""
_AT_ONCE = 16
"""Races side by side: after a cut each waits for a moment."""


def t12_random_histories(folder: Path, n: int) -> Result:
    """Random transitions by clients, workers, zombies and dispatcher, against a model."""
    result = Result("T12", "random histories of the job store against a model", n, 2000)
    with _database(folder) as (_, database):

        class Machine(JobStoreMachine):
            pass

        Machine.database = database
        try:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=n,
                    stateful_step_count=30,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except AssertionError as error:
            result.violations.append(f"T12 {error}")
    result.notes.append("up to 30 transitions each, zombies included")
    return result


def t13_races(folder: Path, n: int) -> list[Result]:
    """Two workers race for a job's claim and, with the lease over, for its commit."""
    results = []
    with _database(folder) as (servers, database), Proxy(servers.postgres.port) as proxy:
        url = with_driver(servers.database_url)
        url = url.replace(f":{servers.postgres.port}", f":{proxy.port}")
        engine = create_engine(url, pool_size=40, pool_pre_ping=True)
        faulty = session_factory(engine)
        tenant = _tenant(database)
        for share in FAULTS:
            result = Result(
                f"T13 {share:.0%}", f"claim and commit races, {share:.0%} faults", 0, 1000
            )

            entered = [Race(database, faulty, tenant) for _ in range(n // len(FAULTS))]
            before = proxy.cuts
            most = before + _CUTS_PER_RACE * len(entered)

            def judge(chunk: bytes, share: float = share, most: int = most) -> Verdict:
                if len(chunk) < 6 or random.random() >= share or proxy.cuts >= most:
                    return Verdict.FORWARD
                return random.choice((Verdict.CUT, Verdict.CUT_ANSWER))

            proxy.judge = judge
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                races = list(threads.map(Race.run, entered))
            result.violations = [problem for race in races for problem in race.judge()]
            result.n = result.jobs = len(races)
            result.duplicated = len(result.violations)
            refused = sum(race.refused for race in races)
            cut = proxy.cuts - before
            result.notes.append(f"{refused} stale commits refused, {cut} connections cut")
            results.append(result)
        engine.dispose()
    return results


class Race:
    """One job and two workers, each of which believes for a while that it holds it."""

    def __init__(
        self, database: sessionmaker[Session], faulty: sessionmaker[Session], tenant: UUID
    ) -> None:
        self._database = database
        self._faulty = faulty
        self._tenant = tenant
        # A known prompt is committed in one statement, a new one in a transaction.
        prompt = random.choice((_KNOWN, str(new_id())))
        with database.begin() as session:
            self._job = accept(session, self._tenant, max_attempts=9, prompt=prompt).id
        self._committed: list[int] = []
        self.refused = 0
        self._barrier = threading.Barrier(2)

    def run(self) -> Self:
        """Both workers, to the end."""
        threads = [threading.Thread(target=self._work, args=(f"w{k}",)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def _work(self, name: str) -> None:
        self._barrier.wait()
        for _ in range(4):
            job = self._claim(name)
            if job is None:
                continue
            lease = Lease(job)
            try:
                done = retry_database(lambda job=job, lease=lease: self._commit(job, lease), lease)
            except LeaseLost:
                self.refused += 1
                continue
            self._committed.append(done.attempt)

    def _claim(self, name: str) -> Job | None:
        """A lease that is over at once, so that the rival may take the job at any moment."""
        no_time = timedelta(0)
        for poison in (False, True):
            statement = claims.claim(self._job, name, "gpu", no_time, poison=poison)
            try:
                with self._faulty.begin() as session:
                    job = session.scalars(*statement).one_or_none()
            except SQLAlchemyError:
                job = None  # cut off; the claim may have gone through, and is lost then
            if job is not None:
                return job
        return None

    def _commit(self, job: Job, lease: Lease) -> Job:
        prompt = PromptRows(_Meaningless()).of(job)  # type: ignore[arg-type]
        success = endings.succeed(
            job.id, lease.attempt, 1.0, images=[image_columns(job)], prompt_sha256=prompt.sha256
        )
        prompt.look_up(self._faulty)
        return commit_success(self._faulty, job.id, lease.attempt, success, prompt)

    def judge(self) -> list[str]:
        """What is wrong with the job now."""
        with self._database.begin() as session:
            job = session.get_one(Job, self._job)
            images = session.scalars(select(Image.attempt).where(Image.job_id == job.id)).all()
            successes = session.scalars(
                select(func.count()).where(
                    JobAttempt.job_id == job.id, JobAttempt.outcome == "succeeded"
                )
            ).one()
        told = len(set(self._committed))
        succeeded = job.state == "succeeded"
        right = (
            told <= 1
            and successes == int(succeeded)
            and list(images) == ([job.attempt] if succeeded else [])
            and (not told or (succeeded and self._committed[0] == job.attempt))
        )
        if right:
            return []
        return [f"{self._describe(job)}: told {self._committed}, images of {list(images)}"]

    @staticmethod
    def _describe(job: Job) -> str:
        job_id: UUID = job.id
        return f"{job_id} {job.state} at attempt {job.attempt}"


class _Meaningless:
    """An embedder for where nobody will search."""

    model_name = "test"

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The same vector for each."""
        return [[1.0] + [0.0] * 383 for _ in texts]


_KNOWN = "p"


def _tenant(database: sessionmaker[Session]) -> UUID:
    with database.begin() as session:
        tenant = session.scalars(tenants.ensure_tenant("races")).one()
        [vector] = _Meaningless().embed([_KNOWN])
        session.execute(image_queries.ensure_prompt(tenant, _KNOWN, vector, "test"))
        return tenant


@contextmanager
def _database(folder: Path) -> Iterator[tuple[EmbeddedServers, sessionmaker[Session]]]:
    folder.mkdir(parents=True)
    with EmbeddedServers(folder / "home", durable=False) as servers:
        url = with_driver(servers.database_url)
        upgrade(url)
        engine = create_engine(url)
        yield servers, session_factory(engine)
        engine.dispose()

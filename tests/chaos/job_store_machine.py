"""The job store against a model of it: random transitions by clients, workers, zombies and
dispatcher.

Every rule performs one real statement on a real Postgres, and the same step on a model of twenty
lines; after each step both must agree on every job, every attempt and every image. Zombies are
part of it: any attempt ever made may try to commit, fail or renew at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from shared.core import tenants
from shared.core.ids import new_id
from shared.images import queries as image_queries
from shared.images.models import Image
from shared.jobs.models import Job
from shared.jobs.queries import claims, client_requests, endings, lookups, periodic, transitions
from shared.jobs.state import RETRYABLE_STATES, TERMINAL_STATES
from tests.jobs import accept, as_one

LEASE = timedelta(hours=1)
WORKERS = st.sampled_from(["w1", "w2", "w3"])
BEHIND = st.sampled_from([0, 0, 0, 1, 2, -1])
"""By how many attempts whoever acts is behind the newest: mostly its holder, often a zombie."""


@dataclass
class Expected:
    """What the model believes of one job."""

    max_attempts: int
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    worker: str | None = None
    overdue: bool = False
    delayed: bool = False
    late: bool = False
    cancel_requested: bool = False
    outcomes: list[str | None] = field(default_factory=list)
    sequence: int = 0
    committed_by: int | None = None

    def end(self, outcome: str) -> None:
        """The open attempt is over."""
        self.outcomes[-1] = outcome

    def move(self, state: str) -> None:
        """A transition away from a worker."""
        self.state = state
        self.worker = None
        self.overdue = False
        self.delayed = False
        self.sequence += 1

    def lose(self) -> None:
        """The worker is taken for dead."""
        self.losses += 1
        self.failures += 1
        self.end("lost")
        if self.cancel_requested:
            self.move("canceled")
        elif self.losses >= transitions.MAX_LOSSES or self.failures >= self.max_attempts:
            self.move("failed")
        else:
            self.move("queued")


class JobStoreMachine(RuleBasedStateMachine):
    """Set `database` on a subclass. A history is one transaction, which is rolled back."""

    database: ClassVar[sessionmaker[Session]]
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[UUID, Expected] = {}
        self.session = self.database()
        name = f"machine {new_id()}"
        self.tenant = self.session.scalars(tenants.ensure_tenant(name)).one()
        self.session.execute(
            image_queries.ensure_prompt(self.tenant, "p", [1.0] + [0.0] * 383, "test")
        )

    def teardown(self) -> None:
        """Leave nothing for the next history's dispatcher to find."""
        self.session.rollback()
        self.session.close()

    # --- Clients ------------------------------------------------------------------------------

    @rule(target=jobs, max_attempts=st.integers(1, 3))
    def submit(self, max_attempts: int) -> UUID:
        job = accept(
            self.session, self.tenant, max_attempts=max_attempts, estimated_gpu_seconds=1e6
        )
        self.expected[job.id] = Expected(max_attempts)
        return job.id

    @rule(job=jobs)
    def cancel(self, job: UUID) -> None:
        model = self.expected[job]
        took = self._one(client_requests.cancel(self.tenant, job))
        if model.state == "queued":
            assert took
            model.move("canceled")
            model.cancel_requested = True
        elif model.state == "running" and not model.cancel_requested:
            assert took
            model.cancel_requested = True
            model.sequence += 1
        else:
            assert not took

    @rule(job=jobs)
    def retry(self, job: UUID) -> None:
        model = self.expected[job]
        took = self._one(client_requests.retry(self.tenant, job, "key"))
        assert took == (model.state in RETRYABLE_STATES)
        if took:
            model.move("queued")
            model.failures = model.losses = 0
            model.cancel_requested = model.late = False

    # --- Workers, dead or alive ----------------------------------------------------------------

    @rule(job=jobs, worker=WORKERS, poison=st.booleans())
    def claim(self, job: UUID, worker: str, poison: bool) -> None:
        model = self.expected[job]
        took = self._one(as_one(claims.claim(job, worker, "gpu", LEASE, poison=poison)))
        due = model.state == "queued" and not model.delayed and poison == (model.losses > 0)
        overdue = (
            poison
            and model.state == "running"
            and model.overdue
            and model.losses + 1 < transitions.MAX_LOSSES
            and model.failures + 1 < model.max_attempts
            and not model.cancel_requested
        )
        assert took == ((due or overdue) and not model.late)
        if took:
            if overdue:
                model.end("lost")
                model.losses += 1
                model.failures += 1
            model.move("running")
            model.worker = worker
            model.attempt += 1
            model.outcomes.append(None)

    @rule(job=jobs, behind=BEHIND, worker=WORKERS)
    def renew(self, job: UUID, behind: int, worker: str) -> None:
        model = self.expected[job]
        attempt = model.attempt - behind
        took = self._one(claims.renew_leases([(job, attempt)], worker, LEASE))
        assert took == self._held(model, attempt)
        lost = self.session.execute(claims.find_lost([(job, attempt)])).all()
        assert bool(lost) != took
        if took:
            model.overdue = False
            model.worker = worker

    @rule(job=jobs, behind=BEHIND)
    def commit(self, job: UUID, behind: int) -> None:
        model = self.expected[job]
        attempt = model.attempt - behind
        image = self._image(job, attempt)
        success = endings.succeed(
            job, attempt, 1.0, images=[image], prompt_sha256=image_queries.text_sha256("p")
        )
        done = self.session.scalars(*success).one_or_none()
        assert (done is not None) == self._held(model, attempt)
        if done is not None:
            model.end("succeeded")
            model.move("succeeded")
            model.committed_by = attempt

    @rule(job=jobs, behind=BEHIND, passes=st.booleans(), dies=st.booleans())
    def fail(self, job: UUID, behind: int, passes: bool, dies: bool) -> None:
        model = self.expected[job]
        attempt = model.attempt - behind
        if passes:
            statement = endings.fail_or_retry(
                job, attempt, "out_of_memory", "m", LEASE, worker_dies=dies
            )
        else:
            statement = endings.fail(job, attempt, "invalid_input", "m")
        took = self._one(statement)
        assert took == self._held(model, attempt)
        if took:
            model.end("failed")
            model.failures += 1
            model.losses += int(passes and dies)
            used_up = model.failures >= model.max_attempts
            poisonous = dies and model.losses >= transitions.MAX_LOSSES
            if not passes or used_up or poisonous:
                model.move("failed")
            else:
                model.move("queued")
                model.delayed = True

    @rule(
        job=jobs,
        behind=BEHIND,
        how=st.sampled_from(
            [
                (endings.release, "released", "queued"),
                (endings.cancel_running, "canceled", "canceled"),
                (endings.expire_running, "expired", "expired"),
            ]
        ),
    )
    def stop(
        self, job: UUID, behind: int, how: tuple[Callable[[UUID, int], Any], str, str]
    ) -> None:
        statement, outcome, state = how
        model = self.expected[job]
        attempt = model.attempt - behind
        took = self._one(statement(job, attempt))
        assert took == self._held(model, attempt)
        if took:
            model.end(outcome)
            model.move(state)

    @rule(worker=WORKERS)
    def restart(self, worker: str) -> None:
        taken = self._all(claims.release_leases_of(worker, LEASE))
        held = {job for job, model in self.expected.items() if model.worker == worker}
        assert taken == held
        for job in held:
            self.expected[job].lose()

    # --- The dispatcher, and time ---------------------------------------------------------------

    @rule(job=jobs)
    def lease_runs_out(self, job: UUID) -> None:
        model = self.expected[job]
        if model.state == "running":
            self._set(job, lease_until=func.now() - timedelta(seconds=1))
            model.overdue = True

    @rule(job=jobs)
    def delay_passes(self, job: UUID) -> None:
        if self.expected[job].delayed:
            self._set(job, not_before=func.now() - timedelta(seconds=1))
            self.expected[job].delayed = False

    @rule(job=jobs, which=st.sampled_from(["start_deadline", "finish_deadline"]))
    def deadline_passes(self, job: UUID, which: str) -> None:
        model = self.expected[job]
        if model.state == "queued" or (model.state, which) == ("running", "finish_deadline"):
            self._set(job, **{which: func.now() - timedelta(seconds=1)})
            model.late = True

    @rule()
    def expire_leases(self) -> None:
        changed = self._all(periodic.expire_leases(1000, LEASE))
        overdue = {job for job, model in self.expected.items() if model.overdue}
        assert changed == overdue
        for job in overdue:
            self.expected[job].lose()

    @rule()
    def expire_queued(self) -> None:
        changed = self._all(periodic.expire_queued(1000))
        late = {job for job, m in self.expected.items() if m.late and m.state == "queued"}
        assert changed == late
        for job in late:
            self.expected[job].move("expired")

    @rule()
    def expire_unfinished(self) -> None:
        changed = self._all(periodic.expire_unfinished(1000, LEASE))
        late = {job for job, m in self.expected.items() if m.late and m.state == "running"}
        assert changed == late
        for job in late:
            self.expected[job].end("expired")
            self.expected[job].move("expired")

    # --- What must always hold ------------------------------------------------------------------

    @invariant()
    def database_is_as_expected(self) -> None:
        if not self.expected:
            return
        self.session.expire_all()
        jobs = self.session.scalars(select(Job).where(Job.tenant_id == self.tenant)).all()
        attempts = self.session.scalars(lookups.list_attempts(self.expected)).all()
        images = self.session.execute(
            select(Image.job_id, Image.attempt).where(Image.tenant_id == self.tenant)
        ).all()
        assert {job.id for job in jobs} == set(self.expected)
        outcomes: dict[UUID, list[str | None]] = {job: [] for job in self.expected}
        used = dict.fromkeys(self.expected, 0.0)
        for record in attempts:
            ended = record.outcome is not None
            assert (record.finished_at is not None) == (record.gpu_seconds is not None) == ended
            used[record.job_id] += record.gpu_seconds or 0.0
            outcomes[record.job_id].append(record.outcome)
        committed = dict.fromkeys(self.expected, None) | {row[0]: row[1] for row in images}
        assert len(images) == len({row[0] for row in images}), "a job has images twice"
        for job in jobs:
            model = self.expected[job.id]
            found = (
                *(job.state, job.attempt, job.failures, job.losses, job.worker),
                *(job.cancel_requested, job.sequence, outcomes[job.id], committed[job.id]),
            )
            assert found == (
                *(model.state, model.attempt, model.failures, model.losses, model.worker),
                *(model.cancel_requested, model.sequence, model.outcomes, model.committed_by),
            )
            assert (job.state in TERMINAL_STATES) == (job.finished_at is not None)
            assert len(outcomes[job.id]) == job.attempt
            assert outcomes[job.id].count(None) == (job.state == "running")
            assert (job.gpu_seconds or 0.0) == used[job.id], "an attempt is not charged"
            assert (committed[job.id] is not None) == (job.state == "succeeded")

    # --- Parts ----------------------------------------------------------------------------------

    @staticmethod
    def _held(model: Expected, attempt: int) -> bool:
        return model.state == "running" and model.attempt == attempt

    def _one(self, statement: Any) -> bool:
        return self.session.scalars(statement).one_or_none() is not None

    def _all(self, statement: Any) -> set[UUID]:
        """Of this history's jobs: other tests may have left some whose leases run out now."""
        return {job.id for job in self.session.scalars(statement)} & self.expected.keys()

    def _set(self, job: UUID, **values: Any) -> None:
        self.session.execute(update(Job).where(Job.id == job).values(**values))

    def _image(self, job: UUID, attempt: int) -> dict[str, Any]:
        return {
            "id": new_id(),
            "tenant_id": self.tenant,
            "job_id": job,
            "session_id": "s1",
            "index": 0,
            "attempt": attempt,
            "seed": 7,
            "width": 64,
            "height": 64,
            "content_type": "image/png",
            "bytes": 1,
            "sha256": "0" * 64,
            "s3_key": f"s1/{job}/{attempt}/00.png",
            "thumbnail_s3_key": f"s1/{job}/{attempt}/00.thumb.webp",
            "receipt": {},
            "gpu_seconds": 1.0,
        }

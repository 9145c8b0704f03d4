"""A job's success: its state, its images and its prompt, all or nothing."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Select, delete, func, select
from sqlalchemy import text as sql_text
from sqlalchemy.orm import Session, sessionmaker

from shared.core.database import Given
from shared.core.ids import new_id
from shared.images import queries as image_queries
from shared.images.models import Image, Prompt
from shared.jobs.models import Job
from shared.jobs.queries import claims, endings, lookups
from tests.jobs import accept, image_columns
from worker.jobs.commit import commit_success
from worker.jobs.inputs import PromptRow, PromptRows
from worker.jobs.lease import LeaseLost

LEASE = timedelta(minutes=1)


class Embedder:
    """Vectors that mean nothing, counted."""

    model_name = "test"

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The same for each."""
        self.calls += 1
        return [[1.0] + [0.0] * 383 for _ in texts]


@pytest.fixture
def embedder() -> Embedder:
    """The worker's."""
    return Embedder()


@pytest.fixture
def prompts(embedder: Embedder) -> PromptRows:
    """What the worker remembers."""
    return PromptRows(embedder)  # type: ignore[arg-type]


def running(job_store: sessionmaker[Session], tenant: UUID, prompt: str, images: int = 1) -> Job:
    """A job in a worker's hands."""
    with job_store.begin() as session:
        job = accept(session, tenant, prompt=prompt, seeds=list(range(images)))
        return session.scalars(*claims.claim(job.id, "w", "gpu", LEASE)).one()


def commit(job_store: sessionmaker[Session], job: Job, prompt: PromptRow, attempt: int = 1) -> Job:
    """What a worker does last."""
    images = [image_columns(job, index) for index in range(len(job.seeds))]
    success = endings.succeed(job.id, attempt, 1.5, images=images, prompt_sha256=prompt.sha256)
    prompt.look_up(job_store)
    done = commit_success(job_store, job.id, attempt, success, prompt)
    prompt.committed()
    return done


def images_of(job_store: sessionmaker[Session], job: Job) -> list[tuple[int, str]]:
    """(index, prompt) of each."""
    with job_store() as session:
        statement = (
            select(Image.index, Prompt.text)
            .join(Prompt, Prompt.id == Image.prompt_id)
            .where(Image.job_id == job.id)
            .order_by(Image.index)
        )
        return [(index, prompt) for index, prompt in session.execute(statement)]


def evict(job_store: sessionmaker[Session], *jobs: Job) -> None:
    """Remove the images of these jobs, and the prompt that nothing else names."""
    with job_store.begin() as session:
        session.execute(delete(Image).where(Image.job_id.in_([job.id for job in jobs])))
        session.execute(delete(Prompt).where(Prompt.text == jobs[0].prompt))


def count_prompts(job_store: sessionmaker[Session], prompt: str) -> int:
    with job_store() as session:
        return session.scalar(select(func.count()).where(Prompt.text == prompt)) or 0


def test_a_prompt_is_embedded_once_for_all_jobs_that_use_it(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows, embedder: Embedder
) -> None:
    text = f"a lake {new_id()}"
    first, second = (running(job_store, tenant, text, images=3) for _ in range(2))
    for job in (first, second):
        done = commit(job_store, job, prompts.of(job))
        assert (done.state, done.gpu_seconds) == ("succeeded", 1.5)
        assert images_of(job_store, job) == [(index, text) for index in range(3)]
    assert embedder.calls == 1
    assert count_prompts(job_store, text) == 1


def test_a_prompt_that_was_removed_meanwhile_is_put_on_record_again(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows, embedder: Embedder
) -> None:
    text = f"a lake {new_id()}"
    first, second = (running(job_store, tenant, text) for _ in range(2))
    commit(job_store, first, prompts.of(first))
    remembered = prompts.of(second)
    assert remembered.known
    evict(job_store, first)
    assert commit(job_store, second, remembered).state == "succeeded"
    assert images_of(job_store, second) == [(0, text)]
    assert embedder.calls == 2


def test_without_its_prompt_a_job_does_not_succeed(
    job_store: sessionmaker[Session], tenant: UUID
) -> None:
    job = running(job_store, tenant, f"a lake {new_id()}")
    success = endings.succeed(
        job.id, 1, 1.0, images=[image_columns(job)],
        prompt_sha256=image_queries.text_sha256(job.prompt),
    )  # fmt: skip
    with job_store.begin() as session:
        assert session.scalars(*success).one_or_none() is None
    with job_store() as session:
        assert session.get_one(Job, job.id).state == "running"
    assert images_of(job_store, job) == []


def test_jobs_with_one_prompt_and_one_original_commit_side_by_side(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows
) -> None:
    """Neither waits for the other's commit: what both name is locked against deletion alone."""
    text = f"a lake {new_id()}"
    earlier = running(job_store, tenant, text)
    commit(job_store, earlier, prompts.of(earlier))
    with job_store() as session:
        original = session.scalars(select(Image.id).where(Image.job_id == earlier.id)).one()

    def success(job: Job) -> Given[Select[Job]]:
        image = image_columns(job, reproduces=original)
        sha256 = image_queries.text_sha256(text)
        return endings.succeed(job.id, 1, 1.0, images=[image], prompt_sha256=sha256)

    first, second = (running(job_store, tenant, text) for _ in range(2))
    with job_store.begin() as slow, job_store.begin() as session:
        session.execute(sql_text("SET LOCAL lock_timeout = '10s'"))
        assert slow.scalars(*success(first)).one().state == "succeeded"
        assert session.scalars(*success(second)).one().state == "succeeded"


@pytest.mark.parametrize("known", [True, False])
def test_who_lost_the_job_writes_nothing(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows, known: bool
) -> None:
    text = f"a lake {new_id()}"
    if known:
        earlier = running(job_store, tenant, text)
        commit(job_store, earlier, prompts.of(earlier))
    job = running(job_store, tenant, text)
    with pytest.raises(LeaseLost):
        commit(job_store, job, prompts.of(job), attempt=2)
    assert images_of(job_store, job) == []
    assert count_prompts(job_store, text) == int(known)


@pytest.mark.parametrize("known", [True, False])
def test_a_commit_that_was_not_answered_is_found_done(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows, known: bool
) -> None:
    job = running(job_store, tenant, f"a lake {new_id()}")
    commit(job_store, job, prompts.of(job))
    again = prompts if known else PromptRows(Embedder())  # type: ignore[arg-type]
    assert commit(job_store, job, again.of(job)).state == "succeeded"
    assert images_of(job_store, job) == [(0, job.prompt)]


def test_a_job_is_read_with_each_image_and_each_attempt(
    job_store: sessionmaker[Session], tenant: UUID, prompts: PromptRows
) -> None:
    job = running(job_store, tenant, "a lake", images=3)
    with job_store.begin() as session:
        session.scalars(endings.release(job.id, 1)).one()
        again = session.scalars(*claims.claim(job.id, "w", "gpu", LEASE)).one()
    commit(job_store, again, prompts.of(again), attempt=2)
    with job_store() as session:
        rows = session.execute(lookups.get_whole_job(tenant, job.id)).all()
        assert session.execute(lookups.get_whole_job(new_id(), job.id)).all() == []
    assert {row[0].id for row in rows} == {job.id}
    assert [(image.index, attempt.number) for _, image, attempt in rows] == [
        (index, number) for index in range(3) for number in (1, 2)
    ]

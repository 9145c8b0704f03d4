"""The rules of keeping and throwing away: stars, deletion of images, jobs, sessions and uploads."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.images.schemas import Deleted, Image
from api.images.service import present
from shared.core.errors import StorageUnavailable
from shared.core.ids import to_wire
from shared.core.logging import get_logger
from shared.core.storage import Storage
from shared.images import deletion
from shared.jobs.queries import periodic

_log = get_logger(__name__)


_JOBS_AT_ONCE = 200


_SECONDS = 10.0
"""For the SQL of one portion."""


_OBJECTS_SECONDS = 5.0
"""For removing objects from S3; the sweep removes the rest."""


@dataclass
class _Gone:
    """What one transaction has deleted, and the prefixes of its objects."""

    sessions: int = 0
    jobs: int = 0
    images: int = 0
    prompts: int = 0
    uploads: int = 0
    prefixes: list[str] = field(default_factory=list)


async def set_star(
    resources: Resources, principal: Principal, image_id: str, starred: bool
) -> Image:
    """Star an image or take its star away.

    Raises:
        Problem: 404.
    """
    row_id = parse_id("img", image_id, "image")
    async with resources.tenant_transaction(principal) as session:
        statement = deletion.star(principal.tenant_id, row_id, starred)
        row = (await session.scalars(statement)).one_or_none()
    if row is None:
        raise not_found("image")
    return present(resources, row)


async def delete_image(resources: Resources, principal: Principal, image_id: str) -> Deleted:
    """One image. Its job stays on record.

    Raises:
        Problem: 404; 409 while a job that starts from it waits or runs.
    """
    row_id = parse_id("img", image_id, "image")
    gone = _Gone()
    async with resources.tenant_transaction(principal) as session:
        found = await session.execute(deletion.delete_image(principal.tenant_id, row_id))
        row = found.one_or_none()
        if row is None:
            raise not_found("image")
        await _refuse_while_wanted(session, principal, [row.s3_key])
        # The thumbnail's key begins in the same way.
        gone.prefixes.append(row.s3_key.rpartition(".")[0] + ".")
        await _after_images(session, principal, [row.prompt_id], gone)
    return await _finish(resources, principal, [gone])


async def delete_upload(resources: Resources, principal: Principal, upload_id: str) -> Deleted:
    """One upload. Jobs that started from it, and their pictures, stay on record.

    Raises:
        Problem: 404; 409 while a job that starts from it waits or runs.
    """
    row_id = parse_id("upl", upload_id, "upload")
    gone = _Gone(uploads=1)
    async with resources.tenant_transaction(principal) as session:
        found = await session.scalars(deletion.delete_upload(principal.tenant_id, row_id))
        key = found.one_or_none()
        if key is None:
            raise not_found("upload")
        await _refuse_while_wanted(session, principal, [key])
        gone.prefixes.append(key)
        await session.execute(deletion.doom_objects(principal.tenant_id, gone.prefixes))
    return await _finish(resources, principal, [gone])


async def delete_job(resources: Resources, principal: Principal, job_id: str) -> Deleted:
    """An ended job with its images and attempts.

    Raises:
        Problem: 404; 409 when it waits or runs.
    """
    row_id = parse_id("job", job_id, "job")
    gone = _Gone()
    async with resources.tenant_transaction(principal, _SECONDS) as session:
        statement = deletion.lock_job(principal.tenant_id, row_id)
        job = (await session.scalars(statement)).one_or_none()
        if job is None:
            raise not_found("job")
        if job.finished_at is None:
            raise Problem("job_not_finished", f"The job is {job.state}.")
        await _delete_jobs(session, principal, job.session_id, [(row_id, job.attempt)], gone)
    return await _finish(resources, principal, [gone])


async def delete_session(resources: Resources, principal: Principal, session_id: str) -> Deleted:
    """A session with everything in it, in portions; safe to repeat after a failure.

    Raises:
        Problem: 404; 409 when a job of it waits or runs, and then nothing, or the rest, stays.
    """
    portions: list[_Gone] = []
    while not portions or not portions[-1].sessions:
        gone = _Gone()
        portions.append(gone)
        async with resources.tenant_transaction(principal, _SECONDS) as session:
            await session.execute(deletion.keep_out_of_session(principal.tenant_id, session_id))
            statement = deletion.lock_session(principal.tenant_id, session_id)
            if (await session.scalars(statement)).one_or_none() is None:
                raise not_found("session")
            unfinished = deletion.has_unfinished_job(principal.tenant_id, session_id)
            if (await session.scalars(unfinished)).one():
                raise Problem("job_not_finished", "Jobs of the session wait or run.")
            wanted = deletion.has_unfinished_job_from_session(principal.tenant_id, session_id)
            if (await session.scalars(wanted)).one():
                raise Problem("job_not_finished", "Jobs that start from its images wait or run.")
            listed = deletion.list_jobs(principal.tenant_id, session_id, _JOBS_AT_ONCE)
            jobs = [(row.id, row.attempt) for row in await session.execute(listed)]
            if jobs:
                await _delete_jobs(session, principal, session_id, jobs, gone)
            else:
                await session.execute(deletion.delete_session(principal.tenant_id, session_id))
                gone.sessions = 1
    return await _finish(resources, principal, portions)


async def _delete_jobs(
    session: AsyncSession,
    principal: Principal,
    session_id: str,
    jobs: Sequence[tuple[UUID, int]],
    gone: _Gone,
) -> None:
    """`jobs` are (id, attempts)."""
    job_ids = [job_id for job_id, _ in jobs]
    statement = deletion.delete_images_of_jobs(principal.tenant_id, job_ids)
    images = (await session.execute(statement)).all()
    await _refuse_while_wanted(session, principal, [row.s3_key for row in images])
    # Objects of attempts that committed nothing lie there, too.
    gone.prefixes += [
        f"{session_id}/{to_wire('job', job_id)}/" for job_id, attempts in jobs if attempts
    ]
    await _after_images(session, principal, [row.prompt_id for row in images], gone)
    await session.execute(periodic.delete_ended(job_ids))
    gone.jobs = len(job_ids)


async def _refuse_while_wanted(
    session: AsyncSession, principal: Principal, s3_keys: Sequence[str]
) -> None:
    """Who has been promised a job is not to find that it fails for want of its initial image."""
    wanted = deletion.has_unfinished_job_from(principal.tenant_id, s3_keys)
    if (await session.scalars(wanted)).one():
        raise Problem("job_not_finished", "A job that starts from it waits or runs.")


async def _after_images(
    session: AsyncSession, principal: Principal, prompt_ids: Sequence[UUID], gone: _Gone
) -> None:
    """Images are gone: so are prompts that were theirs alone; the others remember it."""
    tenant_id = principal.tenant_id
    counts = Counter(prompt_ids)
    ids = sorted(counts)
    gone.images = len(prompt_ids)
    if ids:
        await session.execute(deletion.lock_prompts(tenant_id, ids))
        deleted = (await session.scalars(deletion.delete_prompts(tenant_id, ids))).all()
        gone.prompts = len(deleted)
        for prompt_id in counts.keys() - set(deleted):
            count = counts[prompt_id]
            await session.execute(deletion.count_deleted(tenant_id, prompt_id, count))
    if gone.prefixes:
        await session.execute(deletion.doom_objects(tenant_id, gone.prefixes))


async def _finish(resources: Resources, principal: Principal, portions: Sequence[_Gone]) -> Deleted:
    """The rows are gone; remove the objects, and forget of those removed that they were doomed.

    Within seconds: a client that gives up and asks again would be told that nothing is there.
    """
    prefixes = [prefix for gone in portions for prefix in gone.prefixes]
    removal = _Removal()
    try:
        await resources.on_storage(
            removal.run, resources.storage, prefixes, seconds=_OBJECTS_SECONDS
        )
    except StorageUnavailable as error:
        _log.warning("objects left to the sweep", error=str(error))
    done = list(removal.done)
    async with resources.tenant_transaction(principal) as session:
        await session.execute(deletion.forget_doomed(principal.tenant_id, done))
    return Deleted(
        sessions=sum(gone.sessions for gone in portions),
        jobs=sum(gone.jobs for gone in portions),
        images=sum(gone.images for gone in portions),
        prompts=sum(gone.prompts for gone in portions),
        uploads=sum(gone.uploads for gone in portions),
        objects=removal.objects,
        objects_pending=len(done) < len(prefixes),
    )


@dataclass
class _Removal:
    """What has been removed so far, while storage may still take its time."""

    objects: int = 0
    done: list[str] = field(default_factory=list)
    """The prefixes under which nothing is left."""

    def run(self, storage: Storage, prefixes: Sequence[str]) -> None:
        """Remove the objects; the sweep removes what is left after some seconds."""
        deadline = time.monotonic() + _OBJECTS_SECONDS
        for prefix in prefixes:
            if time.monotonic() > deadline:
                return
            self.objects += storage.delete(storage.list_keys(prefix))
            self.done.append(prefix)

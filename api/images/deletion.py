"""The rules of stars, and of deleting images, jobs, sessions and uploads."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources, parse_id, require_row
from api.core.errors import Problem, not_found
from api.core.principal import Principal
from api.core.publisher import RedisDown
from api.images.schemas import Deleted, Image
from api.images.service import find, serialize
from shared.batches import queries as batch_queries
from shared.core.broker import batch_key, events_key
from shared.core.errors import StorageUnavailable
from shared.core.logging import get_logger
from shared.core.storage import Storage, job_folder
from shared.images import deletion
from shared.jobs.queries import periodic

_log = get_logger(__name__)
_JOBS_AT_ONCE = 200

_SECONDS = 10.0
"""For the SQL of one portion."""

_OBJECTS_SECONDS = 5.0
"""For removing objects from S3; the sweep removes the rest."""


@dataclass
class _Deleted:
    """What one transaction has deleted, and the prefixes of its objects."""

    sessions: int = 0
    jobs: int = 0
    images: int = 0
    prompts: int = 0
    uploads: int = 0
    prefixes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """Redis' keys of the events of jobs, which hold previews, and of batches."""


async def set_star(
    resources: Resources, principal: Principal, image_id: str, starred: bool
) -> Image:
    """Star an image or take its star away.

    Raises:
        Problem: 404.
    """
    row_id = parse_id("img", image_id, "image")
    change = deletion.star(principal.tenant_id, row_id, starred)
    async with resources.tenant_transaction(principal) as session:
        row = await require_row(session, change, "image")
    return serialize(resources, row)


async def delete_image(resources: Resources, principal: Principal, image_id: str) -> Deleted:
    """One image. Its job stays on record; the image can be restored for a minute.

    Raises:
        Problem: 404; 409 while a job that starts from it waits or runs.
    """
    row_id = parse_id("img", image_id, "image")
    async with resources.tenant_transaction(principal) as session:
        deleted = await session.execute(deletion.delete_image(principal.tenant_id, row_id))
        row = deleted.one_or_none()
        if row is None:
            raise not_found("image")
        await _refuse_while_wanted(session, principal, [row.s3_key])
        await session.execute(deletion.count_deleted(principal.tenant_id, row.prompt_id, 1))
    await _forget_events(resources, [events_key(row.job_id)])
    return Deleted(
        sessions=0, jobs=0, images=1, prompts=0, uploads=0, objects=0, objects_pending=True
    )


async def restore_image(resources: Resources, principal: Principal, image_id: str) -> Image:
    """The image as it was; safe to repeat.

    Raises:
        Problem: 404; also where it was deleted more than a minute ago, or its job since.
    """
    row_id, tenant_id = parse_id("img", image_id, "image"), principal.tenant_id
    async with resources.tenant_transaction(principal) as session:
        statement = deletion.find_deleted_image(tenant_id, row_id)
        deleted = (await session.scalars(statement)).one_or_none()
        if deleted is not None:
            await require_row(session, deletion.lock_job(tenant_id, deleted.job_id), "image")
            await session.execute(deletion.restore_image(row_id))
            await session.execute(
                deletion.relate_reproductions(tenant_id, row_id, deleted.reproductions)
            )
            await session.execute(deletion.forget_deleted_images([row_id]))
            await session.execute(deletion.count_deleted(tenant_id, deleted.prompt_id, -1))
    return serialize(resources, await find(resources, principal, image_id))


async def delete_upload(resources: Resources, principal: Principal, upload_id: str) -> Deleted:
    """One upload. Jobs that started from it, and their images, stay on record.

    Raises:
        Problem: 404; 409 while a job that starts from it waits or runs.
    """
    row_id = parse_id("upl", upload_id, "upload")
    gone = _Deleted(uploads=1)
    async with resources.tenant_transaction(principal) as session:
        statement = deletion.delete_upload(principal.tenant_id, row_id)
        key = await require_row(session, statement, "upload")
        await _refuse_while_wanted(session, principal, [key])
        gone.prefixes.append(key)
        await session.execute(deletion.schedule_deletions(principal.tenant_id, gone.prefixes))
    return await _finish(resources, principal, [gone])


async def delete_job(resources: Resources, principal: Principal, job_id: str) -> Deleted:
    """An ended job with its images and attempts.

    Raises:
        Problem: 404; 409 when it waits or runs.
    """
    row_id = parse_id("job", job_id, "job")
    gone = _Deleted()
    async with resources.tenant_transaction(principal, _SECONDS) as session:
        job = await require_row(session, deletion.lock_job(principal.tenant_id, row_id), "job")
        if job.finished_at is None:
            raise Problem("job_not_finished", f"The job is {job.state}.")
        await _delete_jobs(session, principal, job.session_id, [(row_id, job.attempt)], gone)
    return await _finish(resources, principal, [gone])


async def delete_session(resources: Resources, principal: Principal, session_id: str) -> Deleted:
    """A session with everything in it, in portions; safe to repeat after a failure.

    Raises:
        Problem: 404; 409 when a job of it waits or runs, and then nothing, or the rest, stays.
    """
    portions: list[_Deleted] = []
    while not portions or not portions[-1].sessions:
        gone = _Deleted()
        portions.append(gone)
        async with resources.tenant_transaction(principal, _SECONDS) as session:
            await session.execute(deletion.keep_out_of_session(principal.tenant_id, session_id))
            statement = deletion.lock_session(principal.tenant_id, session_id)
            await require_row(session, statement, "session")
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
                emptied = batch_queries.delete_emptied(principal.tenant_id, session_id)
                gone.events += [batch_key(batch) for batch in await session.scalars(emptied)]
                await session.execute(deletion.delete_session(principal.tenant_id, session_id))
                gone.sessions = 1
    return await _finish(resources, principal, portions)


async def _delete_jobs(
    session: AsyncSession,
    principal: Principal,
    session_id: str,
    jobs: Sequence[tuple[UUID, int]],
    gone: _Deleted,
) -> None:
    """`jobs` are (id, attempts)."""
    job_ids = [job_id for job_id, _ in jobs]
    tenant_id = principal.tenant_id
    committed = deletion.delete_images_of_jobs(tenant_id, job_ids)
    images = (await session.execute(committed)).all()
    deleted_before = deletion.forget_images_of_jobs(tenant_id, job_ids)
    aside = (await session.scalars(deleted_before)).all()
    await _refuse_while_wanted(session, principal, [row.s3_key for row in images])
    # Objects of attempts that committed nothing lie there, too.
    gone.prefixes += [job_folder(session_id, job_id) for job_id, attempts in jobs if attempts]
    await _after_images(session, principal, [row.prompt_id for row in images], aside, gone)
    await session.execute(periodic.delete_ended(job_ids))
    gone.events += [events_key(job_id) for job_id in job_ids]
    gone.jobs = len(job_ids)


async def _refuse_while_wanted(
    session: AsyncSession, principal: Principal, s3_keys: Sequence[str]
) -> None:
    """Refuse while an unfinished job needs one of these as its initial image."""
    wanted = deletion.has_unfinished_job_from(principal.tenant_id, s3_keys)
    if (await session.scalars(wanted)).one():
        raise Problem("job_not_finished", "A job that starts from it waits or runs.")


async def _after_images(
    session: AsyncSession,
    principal: Principal,
    prompt_ids: Sequence[UUID],
    counted: Sequence[UUID],
    gone: _Deleted,
) -> None:
    """Images are gone: so are prompts that were theirs alone; the others remember it. `counted`
    are prompts of images that had been deleted before."""
    tenant_id = principal.tenant_id
    counts = Counter(prompt_ids)
    ids = sorted({*counts, *counted})
    gone.images = len(prompt_ids)
    if ids:
        await session.execute(deletion.lock_prompts(tenant_id, ids))
        deleted = (await session.scalars(deletion.delete_prompts(tenant_id, ids))).all()
        gone.prompts = len(deleted)
        for prompt_id in counts.keys() - set(deleted):
            count = counts[prompt_id]
            await session.execute(deletion.count_deleted(tenant_id, prompt_id, count))
    if gone.prefixes:
        await session.execute(deletion.schedule_deletions(tenant_id, gone.prefixes))


async def _finish(
    resources: Resources, principal: Principal, portions: Sequence[_Deleted]
) -> Deleted:
    """The rows are gone; remove their objects, then the record of pending deletions.

    Within seconds: a client that gave up and retried would get 404.
    """
    prefixes = [prefix for gone in portions for prefix in gone.prefixes]
    await _forget_events(resources, [key for gone in portions for key in gone.events])
    removal = await remove_objects(resources, principal, prefixes)
    counts = ("sessions", "jobs", "images", "prompts", "uploads")
    return Deleted(
        **{name: sum(getattr(gone, name) for gone in portions) for name in counts},
        objects=removal.objects,
        objects_pending=len(removal.done) < len(prefixes),
    )


async def remove_objects(
    resources: Resources, principal: Principal, prefixes: Sequence[str]
) -> "_Removal":
    """Perform deletions that were scheduled, as far as storage answers; the rest is swept."""
    removal = _Removal()
    try:
        run = removal.run
        await resources.on_storage(run, resources.storage, prefixes, seconds=_OBJECTS_SECONDS)
    except StorageUnavailable as error:
        _log.warning("objects_left_to_sweep", error=str(error))
    removal = _Removal(removal.objects, list(removal.done))  # the call may continue
    async with resources.tenant_transaction(principal) as session:
        done = deletion.delete_pending_deletions(principal.tenant_id, removal.done)
        await session.execute(done)
    return removal


async def _forget_events(resources: Resources, keys: Sequence[str]) -> None:
    """Without Redis they go by themselves, an hour after the jobs' end."""
    if keys:
        with contextlib.suppress(RedisDown):
            await resources.circuit_breaker.call(resources.redis.unlink, *keys)


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

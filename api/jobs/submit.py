"""Submit a job: plan it, admit it, write it to the database, hand it to Redis; or a dry run."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from api.context import Resources
from api.core.bodies import RequestModel
from api.core.errors import Problem
from api.core.groups import Groups
from api.core.principal import Principal
from api.images.uploads import (
    discard_uploads,
    discarded_on_failure,
    insert_upload,
    upload_admitted,
)
from api.jobs.admission import Demand, LoadShedding, admit_without_sql, admitted, check_kind
from api.jobs.estimates import Estimates, serialize_eta, work_of_job
from api.jobs.idempotency import Answer, IdempotentRequest
from api.jobs.init_images import (
    check_init_image,
    check_mask_size,
    resolve_images,
)
from api.jobs.loras import own_loras
from api.jobs.planning import Plan, plan_job
from api.jobs.prompt_filters import check_prompt
from api.jobs.schemas import Eta, Job, JobDryRun, JobWarning
from api.jobs.serialize import serialize_job
from api.jobs.submission import JobSubmission
from api.webhooks.service import job_webhook
from shared.core import telemetry
from shared.core.broker import INTERACTIVE
from shared.core.ids import new_id
from shared.core.logging import get_logger
from shared.core.tenants import enable_rls_of
from shared.jobs import models
from shared.jobs.metrics import SUBMITTED
from shared.jobs.queries import accept as accept_queries
from shared.jobs.queries.accept import NewJob
from shared.jobs.state import JobState

_log = get_logger(__name__)


async def submit(
    resources: Resources,
    principal: Principal,
    submission: JobSubmission,
    idempotency_key: str | None,
    *,
    joins: timedelta | None = None,
    meaning: bytes | None = None,
) -> tuple[Job | None, Answer]:
    """Write the job to the database, then hand it to Redis; or replay the original answer, without
    the job.

    Args:
        joins: how old an answer to the idempotency key may be to be replayed; None: any age.
        meaning: the fingerprint of what the client sent, where `submission` also depends on what
            may be otherwise at a retry; None: of `submission`.

    Raises:
        Problem: the request breaks a rule, the key was used for another body, or Postgres is
            unavailable.
    """
    estimates = resources.get(Estimates)
    families = await resources.workers.families()
    uploaded = await own_loras(resources, principal) if submission.loras else {}
    meaning = meaning or fingerprint("POST /v1/jobs", submission)
    submitted = IdempotentRequest(idempotency_key, meaning, joins)
    if submission.has_images:
        # Asked before the image is decoded and stored, which a replay should not repeat.
        replay = await submitted.find_earlier(resources, principal)
        if replay is not None:
            return None, replay
    try:
        plan = plan_job(submission, resources.catalog, resources.settings, families, uploaded)
        marks = await check_prompt(
            resources, principal, plan.model, plan.prompt, plan.negative_prompt
        )
    except Problem:
        # The model or the LoRA may have gone since, or a filter come.
        replay = await submitted.find_earlier(resources, principal)
        if replay is None:
            raise
        return None, replay
    images, plan = await resolve_images(resources, principal, submission, plan)
    work = work_of_job(plan)
    estimate = await estimates.of_new(work)
    columns = _columns(resources, principal, submission, plan) | {
        "warnings": await model_warnings(resources, plan.model) + marks,
        "init_image": images.start.column() if images.start else None,
        "estimate": estimate.as_json() if estimate is not None else None,
        "estimated_gpu_seconds": (await estimates.prices()).gpu_seconds(work),
    }
    new = Submission(
        resources,
        principal,
        submitted,
        columns,
        images.new_uploads,
        serialize_eta(estimate),
        families.get(plan.model),
    )
    row, job, answer = await resources.get(SubmissionGroups).accept(new) or await accept(new)
    if row is None:
        return None, answer
    estimates.accepted(work)
    await publish(resources, row)
    return job, answer


async def publish(resources: Resources, row: models.Job) -> None:
    """Hand an accepted job to Redis; without Redis the dispatcher does it later."""
    await resources.publisher.publish(row)
    SUBMITTED.labels(row.model, row.queue_class).inc()


@dataclass(frozen=True)
class Submission:
    """A submission that has only to be admitted and written."""

    resources: Resources
    principal: Principal
    request: IdempotentRequest
    columns: dict[str, Any]
    uploads: list[dict[str, Any]]
    """To be written with it: its own initial images."""
    eta: Eta | None
    family: str | None

    def accepted(self, made: NewJob) -> "_Accepted":
        """What comes of it, written as this job."""
        row = _row(self.columns, made)
        return row, *self.answer(row, made.ahead)

    def answer(self, row: models.Job, position: int) -> tuple[Job, Answer]:
        """The job and what its client is told of it."""
        job = serialize_job(
            self.resources, row, family=self.family, queue_position=position, eta=self.eta
        )
        return job, Answer(job.model_dump_json(), job.links.self)


_Accepted = tuple[models.Job | None, Job | None, Answer]
"""Neither row nor job for a replay."""


async def accept(new: Submission) -> _Accepted:
    """A submission in a transaction of its own.

    Raises:
        Problem: 403, 429 or 503 for what the key may not queue, and where Postgres is unavailable.
    """
    resources, principal, uploads = new.resources, new.principal, new.uploads
    row = job = None
    async with (
        discarded_on_failure(resources, uploads),
        resources.queueing_transaction(principal) as session,
    ):
        answer = await new.request.reserve(session, principal)
        if answer is None:
            async with AsyncExitStack() as admission:
                if uploads:
                    await admission.enter_async_context(upload_admitted(session, principal))
                for upload in uploads:
                    await insert_upload(session, upload)
                demand = Demand.of_columns(new.columns)
                await admission.enter_async_context(admitted(resources, session, principal, demand))
                row, position = await insert_job(session, new.columns)
                job, answer = new.answer(row, position)
                await new.request.keep(session, principal, answer)
    if row is None:
        await discard_uploads(resources, uploads)
    return row, job, answer


class SubmissionGroups:
    """Submissions that wait together, of whatever key, share one transaction: what Postgres and
    its drivers take for each transaction is most of what a submission costs.

    In a group is only what needs no question to the database first. All else, and every submission
    of a group that failed, is accepted by itself, so that a fault is answered to whom it belongs.
    """

    def __init__(self) -> None:
        self._groups: Groups[Submission, _Accepted | NewJob | None] = Groups(
            "submissions", _accept_group
        )
        self._keys: set[tuple[UUID, str | None]] = set()
        """Idempotency keys on their way: a second request with one waits for the first by itself,
        not in front of the others of its group."""

    async def accept(self, new: Submission) -> _Accepted | None:
        """The job in a group's transaction. None: nothing was written, it has to go by itself.

        Raises:
            Problem: Postgres is unavailable, or too many submissions of the key wait.
        """
        quotas, key = new.principal.quotas, (new.principal.tenant_id, new.request.key)
        if new.uploads or quotas.limit_the_queue or new.request.joins is not None:
            return None
        if key in self._keys:
            return None
        try:
            demand = Demand.of_columns(new.columns)
            await admit_without_sql(new.resources, new.principal, demand)
        except Problem:
            return None  # It may still be a replay, which is not refused.
        new.columns["traceparent"] = telemetry.traceparent()
        if new.request.key is not None:
            self._keys.add(key)
        accepted = None
        try:
            with telemetry.span("accept job", "client", attributes=_POSTGRES):
                accepted = await self._groups.add(new.principal.key_id, new)
            return new.accepted(accepted) if isinstance(accepted, NewJob) else accepted
        finally:
            self._keys.discard(key)
            if accepted is None:  # a replay, or its group has failed
                new.resources.get(LoadShedding).give_back(demand.cost)


async def _accept_group(group: Sequence[Submission]) -> list[_Accepted | NewJob | None]:
    """Accept jobs in one transaction, however many they are: in one round trip, or in two where
    there are idempotency keys, with whose answers the second comes. Other answers are made later,
    each by its own request.
    """
    resources = group[0].resources
    has_keys = any(new.request.key is not None for new in group)
    accepted: dict[UUID, _Accepted | NewJob] = {}
    sent = False
    try:
        async with resources.group_connection() as driver:
            async with driver.pipeline():
                await driver.execute("BEGIN")
                inserted = await _insert_group(driver, group)
                if not has_keys:
                    sent = True
                    await driver.execute("COMMIT")
            kept: dict[UUID, dict[str, dict[str, str]]] = {}
            for tenant_id, members, cursor in inserted:
                for made in [NewJob(*row) for row in await cursor.fetchall()]:
                    new = members[made.id]
                    accepted[made.id] = made
                    if new.request.key is not None:
                        row, job, answer = new.accepted(made)
                        accepted[made.id] = row, job, answer
                        kept.setdefault(tenant_id, {})[new.request.key] = answer.stored()
            if has_keys:
                async with driver.pipeline():
                    for tenant_id, answers in kept.items():
                        await enable_rls_of(driver, tenant_id)
                        store = accept_queries.store_idempotent_answers(tenant_id, answers)
                        await driver.execute(*store, prepare=True)
                    sent = True
                    await driver.execute("COMMIT")
    except Problem:
        raise
    except Exception as error:  # whatever it is, it belongs to one of them
        if sent and not _is_refusal(error):  # Whether it went through, nobody knows.
            raise resources.database_unavailable(type(error).__name__, sent=True) from error
        is_fault = not isinstance(error, psycopg.Error | DBAPIError)
        _log.warning("group_failed", error=type(error).__name__, jobs=len(group), exc_info=is_fault)
        return [None] * len(group)
    return [accepted.get(new.columns["id"]) for new in group]


def _is_refusal(error: Exception) -> bool:
    """Whether Postgres has rolled back. Of its end, which is FATAL, it may tell after a COMMIT."""
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"


async def _insert_group(
    driver: "psycopg.AsyncConnection", group: Sequence[Submission]
) -> list[tuple[UUID, dict[UUID, Submission], "psycopg.AsyncCursor"]]:
    """(tenant, its members by the job's id, what the database says of the jobs it took)."""
    tenants: dict[UUID, dict[UUID, Submission]] = {}
    for new in group:
        tenants.setdefault(new.principal.tenant_id, {})[new.columns["id"]] = new
    inserted = []
    for tenant_id in sorted(tenants):
        await enable_rls_of(driver, tenant_id, _WAIT_BRIEFLY)
        members = tenants[tenant_id]
        insertion = accept_queries.accept_jobs(
            [new.columns | new.request.columns() for new in members.values()]
        )
        cursor = await driver.execute(*insertion, prepare=True)
        inserted.append((tenant_id, members, cursor))
    return inserted


_WAIT_BRIEFLY = {"lock_timeout": "50ms"}
"""For a key or a session that another transaction holds, before a group is given up: one tenant's
deletion of a session is not to hold up the others."""


def _row(columns: Mapping[str, Any], made: NewJob) -> models.Job:
    """The row as the database has it now."""
    given = {name: value for name, value in columns.items() if name not in _INTERVALS}
    return models.Job(
        **given,
        state=JobState.QUEUED,
        sequence=0,
        cancel_requested=False,
        created_at=made.created_at,
        start_deadline=made.start_deadline,
        finish_deadline=made.finish_deadline,
    )


_INTERVALS = ("start_within", "finish_within")
_POSTGRES = {"db.system.name": "postgresql"}


async def insert_job(session: AsyncSession, columns: dict[str, Any]) -> tuple[models.Job, int]:
    """Accept one job that was admitted; the row and how many go before it."""
    columns = columns | {"traceparent": telemetry.traceparent()}
    with telemetry.span("accept job", "client", attributes=_POSTGRES):
        connection = await session.connection()
        answer = await connection.exec_driver_sql(*accept_queries.accept_jobs([columns]))
        made = NewJob._make(answer.one())
    return _row(columns, made), made.ahead


def fingerprint(operation: str, submission: RequestModel) -> bytes:
    """What makes two requests the same: their meaning, not the order or spacing of their JSON."""
    body = submission.model_dump_json(exclude_unset=True, exclude={"metadata"})
    metadata = repr(sorted(getattr(submission, "metadata", {}).items()))
    return hashlib.sha256("\n".join((operation, body, metadata)).encode()).digest()


async def model_warnings(resources: Resources, model: str) -> list[dict[str, str]]:
    """What the client should know, although the job is accepted."""
    if await resources.workers.serves(model) is not False:
        return []
    message = "No live worker serves this model; the job waits until one does."
    return [{"code": "model_not_served", "message": message}]


def _columns(
    resources: Resources, principal: Principal, submission: JobSubmission, plan: Plan
) -> dict[str, Any]:
    return {
        **plan.columns(),
        "id": new_id(),
        "tenant_id": principal.tenant_id,
        "api_key_id": principal.key_id,
        "queue_class": INTERACTIVE,
        "max_attempts": resources.settings.max_attempts,
        "webhook": job_webhook(submission.webhook, resources.settings),
        "start_within": _interval(submission.start_within),
        "finish_within": _interval(submission.finish_within),
    }


def _interval(seconds: float | None) -> timedelta | None:
    """Until a deadline, which the database counts by its own clock."""
    return None if seconds is None else timedelta(seconds=seconds)


_SIZE_UNKNOWN = JobWarning(
    code="size_unknown",
    message="The size follows the initial image, which a dry run does not fetch; what is said here "
    "is for the model's default size.",
)


async def dry_run(
    resources: Resources, principal: Principal, submission: JobSubmission
) -> JobDryRun:
    """The submission with every choice made, its cost and its ETA.

    What is behind an https initial image is not looked at, nor behind a `data:` URL where both
    sides are given, and quotas that are freed as jobs end are not asked: they may be otherwise a
    moment later.

    Raises:
        Problem: the request breaks a rule, or the key may not have such images made.
    """
    families = await resources.workers.families()
    uploaded = await own_loras(resources, principal) if submission.loras else {}
    plan = plan_job(submission, resources.catalog, resources.settings, families, uploaded)
    job_webhook(submission.webhook, resources.settings)
    marks = await check_prompt(resources, principal, plan.model, plan.prompt, plan.negative_prompt)
    size = await check_init_image(
        resources, principal, submission.init_image, needs_size=plan.open_size is not None
    )
    mask = await check_init_image(
        resources, principal, submission.mask_image, needs_size=False, field="mask_image"
    )
    check_mask_size(mask, size)
    for place, image in plan.images.items():
        await check_init_image(resources, principal, image, needs_size=False, field=place)
    plan = plan.with_images(
        {
            place: {"image": None if image[:5].lower() == "data:" else image}
            for place, image in plan.images.items()
        }
    )
    if size is not None:
        plan = plan.starting_from(size)
    work = work_of_job(plan)
    seconds = (await resources.get(Estimates).prices()).gpu_seconds(work)
    check_kind(principal.quotas, Demand(plan.cost, frozenset({plan.model}), plan.pixels, seconds))
    estimate = await resources.get(Estimates).of_new(work)
    is_drawn = submission.seed is None and submission.seeds is None
    return JobDryRun.of(
        plan,
        **plan.options,
        valid=True,
        num_images=len(plan.seeds),
        seeds=None if is_drawn else plan.seeds,
        eta=serialize_eta(estimate),
        warnings=[
            *(JobWarning(**one) for one in await model_warnings(resources, plan.model) + marks),
            *([_SIZE_UNKNOWN] if plan.open_size is not None else []),
        ],
    )

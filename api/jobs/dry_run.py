"""What a submission would be, without making it."""

from api.context import Resources
from api.core.principal import Principal
from api.core.quotas import Work, check_kind
from api.jobs.estimates import present_eta, work_of_plan
from api.jobs.init_images import check_init_image
from api.jobs.planning import plan_job
from api.jobs.schemas import JobDryRun, JobSubmission, JobWarning
from api.jobs.service import plan_warnings
from api.webhooks.service import job_webhook

_SIZE_UNKNOWN = JobWarning(
    code="size_unknown",
    message="The size follows the initial image, which a dry run does not fetch; what is said here "
    "is for the model's default size.",
)


async def dry_run(resources: Resources, principal: Principal, asked: JobSubmission) -> JobDryRun:
    """The submission with every choice made, its cost and its ETA.

    What is behind an https initial image is not looked at, nor behind a `data:` URL where both
    sides are given, and quotas that are freed as
    jobs end are not asked: they may be otherwise a moment later.

    Raises:
        Problem: the request breaks a rule, or the key may not have such pictures made.
    """
    families = await resources.roster.families()
    plan = plan_job(asked, resources.catalog, resources.settings, families)
    job_webhook(asked.webhook, resources.settings)
    size = await check_init_image(
        resources, principal, asked.init_image, needs_size=plan.open_size is not None
    )
    if size is not None:
        plan = plan.starting_from(size)
    work = work_of_plan(plan)
    seconds = (await resources.estimates.prices()).gpu_seconds(work)
    pixels = plan.width * plan.height
    check_kind(principal.quotas, Work(plan.cost, frozenset({plan.model}), pixels, seconds))
    estimate = await resources.estimates.of_new(work)
    is_drawn = asked.seed is None and asked.seeds is None
    return JobDryRun(
        valid=True,
        kind=plan.kind,
        model=plan.model,
        width=plan.width,
        height=plan.height,
        steps=plan.steps,
        executed_steps=plan.steps_to_run,
        guidance_scale=plan.guidance_scale,
        scheduler=plan.scheduler,
        strength=plan.strength,
        resize_mode=plan.resize_mode,
        num_images=len(plan.seeds),
        seeds=None if is_drawn else plan.seeds,
        cost=plan.cost,
        eta=present_eta(estimate),
        warnings=[
            *(JobWarning(**warning) for warning in await plan_warnings(resources, plan)),
            *([_SIZE_UNKNOWN] if plan.open_size is not None else []),
        ],
    )

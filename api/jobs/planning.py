"""What a submission means: defaults and limits of its model, and the seed of every image."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from api.core.errors import FieldError, Problem, broken_rules, did_you_mean
from api.jobs.model_rules import (
    broken_control_rules,
    broken_family_rules,
    broken_hires_rules,
    broken_lora_rules,
    broken_prompt_rules,
)
from api.jobs.options import IMAGE_LISTS
from api.jobs.sizes import (
    NO_ROOM,
    OpenSize,
    broken_upscale_limit,
    leaves_room,
    upscaled_size,
    with_sizes_of,
)
from api.jobs.submission import MAX_SEED, JobSubmission, ResizeMode
from shared.core.families import FAMILIES, possible_steps
from shared.core.model_catalog import ModelCatalog, ModelSpec
from shared.core.schedulers import SCHEDULERS
from shared.core.settings import Settings
from shared.jobs.models import UploadedLora

CONTROLNET_WORK = 0.4
"""Of a ControlNet in relation to the model's own network: it has about the half that goes down."""

_MOST_NAMED = 20
"""Models that a message about an unknown one lists."""

T = TypeVar("T")
DEFAULT_STRENGTH = 0.8


@dataclass(frozen=True)
class Plan:
    """A submission with every choice made; the same for one job and for a line of a batch.

    One choice may be left: a size that the initial image decides (`starting_from`).
    """

    kind: str
    model: str
    prompt: str
    negative_prompt: str | None
    seeds: list[int]
    width: int
    height: int
    steps: int
    steps_to_run: int
    """At most `steps`: fewer with a strength; 0 where it leaves none. The most that may be, where
    the family is not known."""
    executed_steps: int | None
    """The same, or null where nobody knows yet."""
    guidance_scale: float
    true_cfg_scale: float | None
    scheduler: str
    strength: float | None
    resize_mode: ResizeMode | None
    loras: list[dict[str, Any]]
    options: dict[str, Any]
    """Of `JobOptions`, those that differ from their default."""
    output_format: str
    session_id: str
    metadata: dict[str, str]
    previews: bool
    hires_steps_to_run: int = 0
    """Of the second pass, as `steps_to_run`."""
    open_size: OpenSize | None = None
    """Until it is decided, `width` and `height` are the model's defaults."""

    def starting_from(self, size: tuple[int, int]) -> "Plan":
        """The plan for an initial image of this (width, height) in pixels.

        Raises:
            Problem: 422, what a second pass makes of it would be too large.
        """
        if self.open_size is None:
            return self
        width, height = self.open_size.for_image(*size)
        plan = replace(self, width=width, height=height, open_size=None)
        hires = self.options.get("hires")
        if hires is None:
            return plan
        spec = self.open_size.spec
        larger = hires | upscaled_size(width, height, hires["scale"], spec)
        if too_large := broken_upscale_limit(larger, spec):
            raise Problem("validation_failed", too_large.message, errors=[too_large])
        return replace(plan, options=self.options | {"hires": larger})

    @property
    def images(self) -> dict[str, str]:
        """Place in the options, such as `references/0/image` -> the image that is named there."""
        return {
            f"{name}/{index}/image": item["image"]
            for name in IMAGE_LISTS
            for index, item in enumerate(self.options.get(name, []))
        }

    def with_images(self, stored: Mapping[str, Mapping[str, str | None]]) -> "Plan":
        """The plan with what is kept of each of `images`."""
        lists = {
            name: [
                item | stored[f"{name}/{index}/image"]
                for index, item in enumerate(self.options[name])
            ]
            for name in IMAGE_LISTS
            if name in self.options
        }
        return replace(self, options=self.options | lists) if lists else self

    @property
    def cost(self) -> int:
        """width × height × steps that run × images, of both passes; ControlNets add their share."""
        first = self.width * self.height * self.steps_to_run
        work = (first + self.pixels * self.hires_steps_to_run) * len(self.seeds)
        return with_controlnets(work, self.options)

    @property
    def pixels(self) -> int:
        """Of a final image."""
        hires = self.options.get("hires")
        return int(hires["width"] * hires["height"]) if hires else self.width * self.height

    def columns(self) -> dict[str, object]:
        """The plan as columns of a job's row."""
        return {
            "kind": self.kind,
            "model": self.model,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seeds": self.seeds,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "true_cfg_scale": self.true_cfg_scale,
            "scheduler": self.scheduler,
            "strength": self.strength,
            "resize_mode": self.resize_mode,
            "loras": self.loras,
            "options": self.options,
            "output_format": self.output_format,
            "session_id": self.session_id,
            "job_metadata": self.metadata,
            "previews": self.previews,
            "cost": self.cost,
        }


def plan_job(
    submission: JobSubmission,
    catalog: ModelCatalog,
    settings: Settings,
    families: Mapping[str, str],
    uploaded: Mapping[str, UploadedLora] | None = None,
) -> Plan:
    """Fill in what was left open and check what depends on the model.

    Args:
        submission: what the client sent.
        catalog: the models there are.
        settings: how many images a job may have.
        families: model -> family. Where it is not known how many steps a strength leaves, the most
            are counted and the engine decides.
        uploaded: name -> LoRA, of the tenant's own.

    Raises:
        Problem: 422 with every field that breaks a rule.
    """
    spec = catalog.default if submission.model is None else catalog.get(submission.model)
    if spec is None:
        raise Problem.invalid(
            "/model", "unknown_model", _no_such_model(submission.model or "", catalog)
        )
    is_img2img = submission.init_image is not None
    steps = _or(submission.steps, spec.default_steps)
    scheduler = _or(submission.scheduler, spec.scheduler)
    usual = 1.0 if submission.masks else DEFAULT_STRENGTH
    strength = _or(submission.strength, usual) if is_img2img else None
    family = families.get(spec.name)
    # The catalogue's names win, also over one that was uploaded before.
    own = {name: lora for name, lora in (uploaded or {}).items() if not catalog.get_lora(name)}
    facts = FAMILIES.get(family or "")
    run = possible_steps(steps, strength, scheduler, family)
    run_again = frozenset({0})
    spec = with_sizes_of(family, spec)
    width = _or(submission.width, spec.default_width)
    height = _or(submission.height, spec.default_height)
    options, hires = submission.stored_options(), submission.hires
    if hires is not None:
        size = upscaled_size(width, height, hires.scale, spec)
        again = {"steps": _or(hires.steps, steps), **size}
        options["hires"] = hires.model_dump() | again
        run_again = possible_steps(again["steps"], hires.strength, scheduler, family)
    plan = Plan(
        kind="inpaint" if submission.masks else "img2img" if is_img2img else "txt2img",
        model=spec.name,
        prompt=submission.prompt,
        negative_prompt=submission.negative_prompt,
        seeds=_seeds(submission),
        width=width,
        height=height,
        steps=steps,
        steps_to_run=max(run),
        hires_steps_to_run=max(run_again),
        executed_steps=max(run) + max(run_again) if len(run) == len(run_again) == 1 else None,
        guidance_scale=_or(submission.guidance_scale, spec.default_guidance_scale),
        true_cfg_scale=submission.true_cfg_scale,
        scheduler=scheduler,
        strength=strength,
        resize_mode=submission.resize_mode or ("fill" if is_img2img else None),
        loras=[
            lora.model_dump() | (own[lora.name].reference if lora.name in own else {})
            for lora in submission.loras
        ],
        options=options,
        output_format=submission.output_format,
        session_id=submission.session_id,
        metadata=dict(submission.metadata),
        previews=submission.previews,
        open_size=_open_size(submission, spec),
    )
    errors = _broken_limits(plan, spec, settings.max_images_per_job, submission)
    errors += broken_family_rules(plan, spec, facts, submission, family)
    errors += broken_lora_rules(plan, spec, catalog, own, family)
    errors += [
        error
        for error in broken_hires_rules(plan.options.get("hires"), max(run_again), spec, family)
        if error.code != "size_over_limit" or plan.open_size is None  # else `starting_from` checks
    ]
    errors += broken_control_rules(submission, spec, catalog, family)
    errors += broken_prompt_rules(submission, spec.name, family)
    if submission.references and spec.ip_adapter is None:
        message = f"{spec.name} does not support reference images."
        code = "references_not_supported"
        errors.append(FieldError(pointer="/references", code=code, message=message))
    if errors:
        raise Problem("validation_failed", errors[0].message, errors=errors)
    return plan


def _open_size(submission: JobSubmission, spec: ModelSpec) -> OpenSize | None:
    is_open = submission.init_image is not None and None in (submission.width, submission.height)
    if not is_open:
        return None
    return OpenSize(spec, submission.width, submission.height, submission.expand)


def _no_such_model(name: str, catalog: ModelCatalog) -> str:
    names = [spec.name for spec in catalog.model]
    guess = did_you_mean(name, names)
    shown = ", ".join(names[:_MOST_NAMED])
    more = ", …: GET /v1/models has them all" if len(names) > _MOST_NAMED else ""
    return f"There is no model {name[:64]!r}.{guess} The models are: {shown}{more}."


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _seeds(submission: JobSubmission) -> list[int]:
    """The seed of each image: given one by one, counted up from the first, or drawn."""
    if submission.seeds is not None:
        return list(submission.seeds)
    count = submission.num_images or 1
    first = secrets.randbelow(MAX_SEED + 2 - count) if submission.seed is None else submission.seed
    return list(range(first, first + count))


def _pointer_to_sent(submission: JobSubmission, *names: str) -> str:
    """The first of these fields that the client did send: the others are our defaults."""
    sent = (name for name in names if getattr(submission, name) is not None)
    return f"/{next(sent, names[0])}"


def _broken_limits(
    plan: Plan, spec: ModelSpec, max_images: int, submission: JobSubmission
) -> list[FieldError]:
    count = len(plan.seeds)
    known = plan.scheduler in SCHEDULERS
    guess = "" if known else did_you_mean(plan.scheduler, SCHEDULERS)  # as long as all the rest
    return broken_rules(
        (
            count <= max_images,
            "/seeds" if submission.seeds is not None else "/num_images",
            "too_many_images",
            f"A job may have {max_images} images at most.",
        ),
        (
            max(plan.seeds) <= MAX_SEED,
            "/seed",
            "seed_out_of_range",
            f"The last image's seed would be above {MAX_SEED}.",
        ),
        (
            plan.width <= spec.max_width,
            "/width",
            "size_over_limit",
            f"{spec.name} makes images up to {spec.max_width} pixels wide.",
        ),
        (
            plan.height <= spec.max_height,
            "/height",
            "size_over_limit",
            f"{spec.name} makes images up to {spec.max_height} pixels high.",
        ),
        (
            plan.steps <= spec.max_steps,
            "/steps",
            "steps_over_limit",
            f"{spec.name} takes {spec.max_steps} steps at most.",
        ),
        (
            known,
            "/scheduler",
            "unknown_scheduler",
            f"There is no such scheduler.{guess} There are {', '.join(SCHEDULERS)}.",
        ),
        (
            plan.steps_to_run >= 1,
            _pointer_to_sent(submission, "strength", "steps", "init_image"),
            "strength_too_low",
            f"steps × strength must be at least 1; it is {plan.steps} × {plan.strength}.",
        ),
        (leaves_room(submission), "/expand", "expand_over_limit", NO_ROOM),
    )


def with_controlnets(work: int, options: Mapping[str, Any]) -> int:
    """The work, and the share of the ControlNets in their part of the steps."""
    nets = options.get("controls", [])
    shares: float = sum(net["end"] - net["start"] for net in nets)
    return round(work * (1 + CONTROLNET_WORK * shares))

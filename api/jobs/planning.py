"""What a submission means: size, defaults and limits of the model, and the seed of every image."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import TypeVar

from api.core.errors import FieldError, Problem
from api.jobs.schemas import MAX_SEED, JobSubmission, ResizeMode
from shared.core.model_catalog import ModelCatalog, ModelSpec
from shared.core.schedulers import SCHEDULERS, steps_to_run, strength_rule
from shared.core.settings import Settings

_SHAPE_COUNTS = 8
"""How much more a wrong shape counts than a wrong number of pixels."""


_MIN_SIDE = 64


@dataclass(frozen=True)
class OpenSize:
    """A size of which a request gave one side at most."""

    spec: ModelSpec
    width: int | None
    height: int | None

    def for_image(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels for an initial image of this size.

        Both sides lie within the model's limits; a shape that they do not allow comes as near as
        they let it. With no side given there are about as many pixels as at the model's default
        size, which it was trained for.
        """
        widths, heights = (
            _sides(self.spec.max_width, self.spec),
            _sides(self.spec.max_height, self.spec),
        )
        if self.width is not None:
            return self.width, _nearest(heights, self.width * height / width)
        if self.height is not None:
            return _nearest(widths, self.height * width / height), self.height
        pixels = self.spec.default_width * self.spec.default_height
        return _best(width / height, pixels, widths, heights)


def _sides(longest: int, spec: ModelSpec) -> range:
    step = spec.size_multiple
    shortest = min(-(-_MIN_SIDE // step) * step, longest)
    return range(shortest, longest + 1, step)


def _nearest(sides: range, length: float) -> int:
    steps = round((length - sides.start) / sides.step)
    return sides[min(max(steps, 0), len(sides) - 1)]


@lru_cache(4096)
def _best(aspect: float, pixels: int, widths: range, heights: range) -> tuple[int, int]:
    def error(size: tuple[int, int]) -> float:
        width, height = size
        shape = abs(math.log(width / height / aspect))
        return _SHAPE_COUNTS * shape + abs(math.log(width * height / pixels))

    return min(((width, _nearest(heights, width / aspect)) for width in widths), key=error)


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
    """At most `steps`: fewer with a strength; 0 where it leaves none."""
    guidance_scale: float
    scheduler: str
    strength: float | None
    resize_mode: ResizeMode | None
    output_format: str
    session_id: str
    metadata: dict[str, str]
    previews: bool
    open_size: OpenSize | None = None
    """Until it is decided, `width` and `height` are the model's defaults."""

    def starting_from(self, size: tuple[int, int]) -> "Plan":
        """The plan for an initial image of this (width, height) in pixels."""
        if self.open_size is None:
            return self
        width, height = self.open_size.for_image(*size)
        return replace(self, width=width, height=height, open_size=None)

    @property
    def cost(self) -> int:
        """width × height × steps that run × images."""
        return self.width * self.height * self.steps_to_run * len(self.seeds)

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
            "scheduler": self.scheduler,
            "strength": self.strength,
            "resize_mode": self.resize_mode,
            "output_format": self.output_format,
            "session_id": self.session_id,
            "job_metadata": self.metadata,
            "previews": self.previews,
            "cost": self.cost,
        }


def plan_job(
    asked: JobSubmission, catalog: ModelCatalog, settings: Settings, families: Mapping[str, str]
) -> Plan:
    """Fill in what was left open and check what depends on the model.

    Args:
        asked: what the client sent.
        catalog: the models there are.
        settings: how many images a job may have.
        families: model -> family, as workers announce it. Where it is not known how many steps a
            strength leaves, all are counted and the engine decides.

    Raises:
        Problem: 422 with every field that breaks a rule.
    """
    spec = catalog.default if asked.model is None else catalog.get(asked.model)
    if spec is None:
        raise Problem.invalid("/model", "unknown_model", _no_such_model(asked.model or "", catalog))
    is_img2img = asked.init_image is not None
    steps, scheduler = _or(asked.steps, spec.default_steps), _or(asked.scheduler, spec.scheduler)
    strength = _or(asked.strength, DEFAULT_STRENGTH) if is_img2img else None
    rule = strength_rule(scheduler, families.get(spec.name))
    plan = Plan(
        kind="img2img" if is_img2img else "txt2img",
        model=spec.name,
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        seeds=_seeds(asked),
        width=_or(asked.width, spec.default_width),
        height=_or(asked.height, spec.default_height),
        steps=steps,
        steps_to_run=steps_to_run(steps, strength, rule),
        guidance_scale=_or(asked.guidance_scale, spec.default_guidance_scale),
        scheduler=scheduler,
        strength=strength,
        resize_mode=(asked.resize_mode or "fill") if is_img2img else None,
        output_format=asked.output_format,
        session_id=asked.session_id,
        metadata=dict(asked.metadata),
        previews=asked.previews,
        open_size=_open_size(asked, spec),
    )
    errors = _broken_limits(plan, spec, settings.max_images_per_job, asked)
    if errors:
        raise Problem("validation_failed", errors[0].message, errors=errors)
    return plan


def _open_size(asked: JobSubmission, spec: ModelSpec) -> OpenSize | None:
    is_open = asked.init_image is not None and None in (asked.width, asked.height)
    return OpenSize(spec, asked.width, asked.height) if is_open else None


def _no_such_model(name: str, catalog: ModelCatalog) -> str:
    names = [spec.name for spec in catalog.model]
    near = get_close_matches(name[:64], names, 1)
    guess = f" Did you mean {near[0]}?" if near else ""
    shown = ", ".join(names[:_MOST_NAMED])
    more = ", …: GET /v1/models has them all" if len(names) > _MOST_NAMED else ""
    return f"There is no model {name[:64]!r}.{guess} The models are: {shown}{more}."


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _seeds(asked: JobSubmission) -> list[int]:
    """The seed of each image: given one by one, counted up from the first, or drawn."""
    if asked.seeds is not None:
        return list(asked.seeds)
    count = asked.num_images or 1
    first = secrets.randbelow(MAX_SEED + 2 - count) if asked.seed is None else asked.seed
    return list(range(first, first + count))


def _pointer_to_sent(asked: JobSubmission, *names: str) -> str:
    """The first of these fields that the client did send: the others are our defaults."""
    sent = (name for name in names if getattr(asked, name) is not None)
    return f"/{next(sent, names[0])}"


def _broken_limits(
    plan: Plan, spec: ModelSpec, max_images: int, asked: JobSubmission
) -> list[FieldError]:
    count = len(plan.seeds)
    rules = (
        (
            count <= max_images,
            "/seeds" if asked.seeds is not None else "/num_images",
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
            f"{spec.name} makes pictures up to {spec.max_width} pixels wide.",
        ),
        (
            plan.height <= spec.max_height,
            "/height",
            "size_over_limit",
            f"{spec.name} makes pictures up to {spec.max_height} pixels high.",
        ),
        (
            plan.steps <= spec.max_steps,
            "/steps",
            "steps_over_limit",
            f"{spec.name} takes {spec.max_steps} steps at most.",
        ),
        (
            plan.scheduler in SCHEDULERS,
            "/scheduler",
            "unknown_scheduler",
            f"No such scheduler; there are {', '.join(SCHEDULERS)}.",
        ),
        (
            plan.steps_to_run >= 1,
            _pointer_to_sent(asked, "strength", "steps", "init_image"),
            "strength_too_low",
            f"steps × strength must be at least 1; it is {plan.steps} × {plan.strength}.",
        ),
    )
    return [
        FieldError(pointer=pointer, code=code, message=message)
        for holds, pointer, code, message in rules
        if not holds
    ]

"""The web UI's samplers and schedule types, and which of our schedulers each is."""

from collections.abc import Mapping
from dataclasses import dataclass

from api.core.errors import Problem
from shared.core.families import schedulers_for

AUTOMATIC, UNIFORM, KARRAS = "automatic", "uniform", "karras"
SCHEDULE_TYPES = {AUTOMATIC: "Automatic", UNIFORM: "Uniform", KARRAS: "Karras"}
"""Name -> label."""
_SUFFIX = " karras"
"""In names of before the schedule type was a field of its own."""


@dataclass(frozen=True)
class Sampler:
    """A sampler of the web UI."""

    name: str
    aliases: tuple[str, ...]
    uniform: tuple[str, ...]
    """Our schedulers, of which a model's family has one at most: diffusion, flow matching."""
    karras: str | None = None
    prefers_karras: bool = False
    """Whether `Automatic` means it, as since version 1.9."""


SAMPLERS = (
    Sampler(
        "DPM++ 2M",
        ("k_dpmpp_2m",),
        ("dpmpp-2m", "flow-dpmpp-2m"),
        karras="dpmpp-2m-karras",
        prefers_karras=True,
    ),
    Sampler("DPM++ SDE", ("k_dpmpp_sde",), ("dpmpp-sde",)),
    Sampler("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), ("dpmpp-2m-sde",)),
    Sampler("Euler a", ("k_euler_a", "k_euler_ancestral"), ("euler-ancestral",)),
    Sampler("Euler", ("k_euler",), ("euler", "flow-euler")),
    Sampler("LMS", ("k_lms",), ("lms",)),
    Sampler("Heun", ("k_heun",), ("heun", "flow-heun")),
    Sampler("DDIM", ("ddim",), ("ddim",)),
    Sampler("DDPM", ("ddpm",), ("ddpm",)),
    Sampler("PLMS", ("plms",), ("pndm",)),
    Sampler("UniPC", ("unipc",), ("unipc", "flow-unipc")),
    Sampler("LCM", ("k_lcm",), ("lcm",)),
    Sampler("SCM", ("scm",), ("scm",)),
)
_BY_NAME = {name.lower(): one for one in SAMPLERS for name in (one.name, *one.aliases)}
LABELS: Mapping[str, tuple[str, str]] = {
    **{scheduler: (one.name, "Uniform") for one in SAMPLERS for scheduler in one.uniform},
    **{one.karras: (one.name, "Karras") for one in SAMPLERS if one.karras is not None},
}
"""Our scheduler -> (sampler, schedule type)."""


def find_scheduler(name: str | None, schedule: str | None, family: str | None) -> str | None:
    """Our scheduler for a sampler and a schedule type; None: the model's own.

    Raises:
        Problem: 422 with what there is for a model of this family.
    """
    wanted = (schedule or AUTOMATIC).strip().lower()
    sampler = (name or "").strip().lower()
    if not sampler and wanted == AUTOMATIC:
        return None
    if sampler not in _BY_NAME and sampler.endswith(_SUFFIX) and wanted in (AUTOMATIC, KARRAS):
        sampler, wanted = sampler.removesuffix(_SUFFIX), KARRAS
    known = _BY_NAME.get(sampler)
    allowed = schedulers_for(family)
    for scheduler in _candidates(known, wanted) if known is not None else ():
        if scheduler in allowed:
            return scheduler
    there_are = ", ".join(sorted({" ".join(LABELS[one]) for one in allowed}))
    raise Problem.invalid(
        "/sampler_name" if known is None else "/scheduler",
        "unknown_sampler",
        f"There is no sampler {(name or '')[:64]!r} with the schedule type "
        f"{(schedule or 'Automatic')[:64]!r} for this model. There are: {there_are}.",
    )


def _candidates(sampler: Sampler, schedule: str) -> tuple[str, ...]:
    karras = (sampler.karras,) if sampler.karras is not None else ()
    if schedule == AUTOMATIC:
        return (*karras, *sampler.uniform) if sampler.prefers_karras else sampler.uniform
    return {KARRAS: karras, UNIFORM: sampler.uniform}.get(schedule, ())

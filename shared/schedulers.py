"""The schedulers that a job can name: wire name -> diffusers class and what it pins in its config;
and how many steps of a schedule run.

Pure data, so that the API can validate names without importing torch. Everything not pinned here
(betas, prediction type, timestep spacing) comes from the checkpoint's own scheduler config, as
`from_config` does it. Each entry is made of parts that draw noise, if they draw any, from the
row's own generator; schedulers whose noise comes from elsewhere (DPMSolverSDE: a Brownian tree of
its own, from torchsde) are not offered.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class SchedulerChoice:
    """One scheduler on offer."""

    class_name: str
    """Name of the class in diffusers."""
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Config values that make the name mean what it says."""
    draws_noise: bool = False
    """Whether its steps take fresh noise (so the picture depends on the seed at every step)."""


def _choice(class_name: str, *, draws_noise: bool = False, **overrides: object) -> SchedulerChoice:
    return SchedulerChoice(class_name, MappingProxyType(overrides), draws_noise)


SCHEDULERS: Mapping[str, SchedulerChoice] = MappingProxyType(
    {
        "ddim": _choice("DDIMScheduler"),
        "ddpm": _choice("DDPMScheduler", draws_noise=True, variance_type="fixed_small"),
        "pndm": _choice("PNDMScheduler", skip_prk_steps=True),
        "lms": _choice("LMSDiscreteScheduler", use_karras_sigmas=False),
        "euler": _choice("EulerDiscreteScheduler", use_karras_sigmas=False),
        "euler-ancestral": _choice("EulerAncestralDiscreteScheduler", draws_noise=True),
        "heun": _choice("HeunDiscreteScheduler", use_karras_sigmas=False),
        "dpmpp-2m": _choice(
            "DPMSolverMultistepScheduler",
            algorithm_type="dpmsolver++",
            solver_order=2,
            use_karras_sigmas=False,
        ),
        "dpmpp-2m-karras": _choice(
            "DPMSolverMultistepScheduler",
            algorithm_type="dpmsolver++",
            solver_order=2,
            use_karras_sigmas=True,
        ),
        "dpmpp-2m-sde": _choice(
            "DPMSolverMultistepScheduler",
            draws_noise=True,
            algorithm_type="sde-dpmsolver++",
            solver_order=2,
            use_karras_sigmas=False,
        ),
        "dpmpp-sde": _choice(
            "DPMSolverSinglestepScheduler",
            draws_noise=True,
            algorithm_type="sde-dpmsolver++",
            solver_order=2,
            use_karras_sigmas=False,
        ),
        "unipc": _choice("UniPCMultistepScheduler", use_karras_sigmas=False),
        "lcm": _choice("LCMScheduler", draws_noise=True),
    }
)
"""Wire name -> scheduler, in the order that documentation and clients show."""


def steps_to_run(steps: int, strength: float | None, *, stretched: bool) -> int:
    """Denoising steps that one image takes; 0 where the strength leaves none.

    diffusers' image-to-image pipelines run the end of a schedule, `int(steps * strength)` steps of
    it. Latent consistency models hand the strength to their scheduler instead, which spreads all
    the steps over that end.

    Args:
        steps: of the whole schedule.
        strength: (0, 1]; None without an initial image.
        stretched: whether the model is of the second kind.
    """
    if strength is None or stretched:
        return steps
    return min(int(steps * strength), steps)


def may_stretch(scheduler: str, family: str | None) -> bool:
    """Whether a model of this family may spread all steps over what a strength leaves.

    Args:
        scheduler: wire name.
        family: as workers announce it. Stable Diffusion cuts its schedule even with the scheduler
            `lcm`; where the family is None or says nothing of it, only the engine knows.
    """
    return scheduler == "lcm" and family not in ("sd", "sdxl")

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
from typing import Literal


@dataclass(frozen=True)
class SchedulerChoice:
    """One scheduler on offer."""

    class_name: str
    """Name of the class in diffusers."""
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Config values that make the name mean what it says."""
    draws_noise: bool = False
    """Whether its steps take fresh noise (so the image depends on the seed at every step)."""
    on_device: bool = False
    """Whether its coefficients must be on the model's device: it multiplies half-precision tensors
    by them, and CUDA rounds a scalar that lies there and takes one from the host as it is."""
    shift: str | None = None
    """Of flow matching: which of its config values holds the checkpoint's shift."""


def _choice(
    class_name: str,
    *,
    draws_noise: bool = False,
    on_device: bool = False,
    shift: str | None = None,
    **overrides: object,
) -> SchedulerChoice:
    return SchedulerChoice(class_name, MappingProxyType(overrides), draws_noise, on_device, shift)


DIFFUSION_SCHEDULERS: Mapping[str, SchedulerChoice] = MappingProxyType(
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
        "lcm": _choice("LCMScheduler", draws_noise=True, on_device=True),
    }
)
"""For models whose noise levels are a table of ᾱ: Stable Diffusion and its like."""

FLOW_SCHEDULERS: Mapping[str, SchedulerChoice] = MappingProxyType(
    {
        "flow-euler": _choice("FlowMatchEulerDiscreteScheduler", on_device=True, shift="shift"),
        "flow-heun": _choice("FlowMatchHeunDiscreteScheduler", on_device=True, shift="shift"),
        "flow-dpmpp-2m": _choice(
            "DPMSolverMultistepScheduler",
            shift="flow_shift",
            algorithm_type="dpmsolver++",
            solver_order=2,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        ),
        "flow-unipc": _choice(
            "UniPCMultistepScheduler",
            shift="flow_shift",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        ),
        "scm": _choice("SCMScheduler", draws_noise=True, on_device=True),
    }
)
"""For models of flow matching."""

SCHEDULERS: Mapping[str, SchedulerChoice] = MappingProxyType(
    {**DIFFUSION_SCHEDULERS, **FLOW_SCHEDULERS}
)
"""Wire name -> scheduler, in the order that documentation and clients show."""

StrengthRule = Literal["down", "up", "all"]
"""How many steps a strength leaves: `steps * strength` rounded down or up, or all of them."""


def steps_to_run(steps: int, strength: float | None, rule: StrengthRule) -> int:
    """Denoising steps that one image takes; 0 where the strength leaves none.

    diffusers' image-to-image pipelines run the end of a schedule. Those of Stable Diffusion round
    its length down; those of flow matching (Stable Diffusion 3, Flux, Qwen-Image, Z-Image) round
    where the end begins, and so its length up. Latent consistency models hand the strength to
    their scheduler instead, which spreads all the steps over that end. In each case the
    floating-point product counts: 0.29 * 100 is 28.999….

    Args:
        steps: of the whole schedule.
        strength: (0, 1]; None without an initial image.
        rule: of the model's pipeline.
    """
    if strength is None or rule == "all":
        return steps
    if rule == "up":
        return steps - int(max(steps - min(steps * strength, steps), 0))
    return min(int(steps * strength), steps)

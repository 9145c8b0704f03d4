"""What the API and the workers must agree on about a model's family.

Heartbeats name the family of each loaded model; the API looks here for what a job of
that family may ask for. How a family is computed stands in `worker.engine.families`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from shared.core.schedulers import DIFFUSION_SCHEDULERS, SCHEDULERS, StrengthRule, steps_to_run

MIN_SIZE_MULTIPLE = 8
"""Pixels; every family's sizes are multiples of it."""


@dataclass(frozen=True)
class FamilyFacts:
    """The rules for jobs of one family."""

    pipeline: str
    """Name of diffusers' text-to-image class, as a checkpoint's `model_index.json` gives it."""
    schedulers: tuple[str, ...]
    """Wire names; the first is what the family is used with most."""
    size_multiple: int = MIN_SIZE_MULTIPLE
    """Pixels; width and height must be multiples of it."""
    strength_rule: StrengthRule = "down"
    """How many steps a strength leaves."""
    image_to_image: bool = True
    inpainting: bool = False
    """Whether it repaints a part of an image."""
    inpaint_checkpoint: str | None = None
    """Name of diffusers' class of those of its checkpoints whose network takes the mask, too."""
    controlnets: bool = False
    """Whether its pipelines in diffusers take ControlNets."""
    control_images: bool = True
    """Whether they also take them with an initial image."""
    loras: bool = True
    """Whether diffusers loads LoRAs into it."""
    negative_prompt: bool = True
    """Whether it takes one without a true guidance scale, of the job or in `models.toml`."""
    prompt_weights: bool = False
    """Whether its network reads the tokens of CLIP, each of which may have a weight."""
    long_prompts: bool = False
    """Whether its network reads any number of CLIP's chunks."""
    true_cfg: bool = False
    """Whether a job may have a `true_cfg_scale`."""


_DIFFUSION = tuple(DIFFUSION_SCHEDULERS)
_FLOW_EULER = ("flow-euler",)


FAMILIES: Mapping[str, FamilyFacts] = MappingProxyType(
    {
        "sd": FamilyFacts(
            "StableDiffusionPipeline",
            _DIFFUSION,
            controlnets=True,
            inpainting=True,
            prompt_weights=True,
            long_prompts=True,
            inpaint_checkpoint="StableDiffusionInpaintPipeline",
        ),
        "sdxl": FamilyFacts(
            "StableDiffusionXLPipeline",
            _DIFFUSION,
            controlnets=True,
            inpainting=True,
            prompt_weights=True,
            long_prompts=True,
            inpaint_checkpoint="StableDiffusionXLInpaintPipeline",
        ),
        "lcm": FamilyFacts(
            "LatentConsistencyModelPipeline",
            ("lcm",),
            strength_rule="all",
            prompt_weights=True,
            long_prompts=True,
        ),
        "sd3": FamilyFacts(
            "StableDiffusion3Pipeline",
            ("flow-euler", "flow-heun"),
            16,
            "up",
            inpainting=True,
            prompt_weights=True,
            controlnets=True,
            control_images=False,
        ),
        "flux": FamilyFacts(
            "FluxPipeline",
            _FLOW_EULER,
            16,
            "up",
            inpainting=True,
            controlnets=True,
            negative_prompt=False,
            true_cfg=True,
        ),
        "flux2": FamilyFacts(
            "Flux2Pipeline",
            _FLOW_EULER,
            16,
            image_to_image=False,
            negative_prompt=False,
            loras=False,
        ),
        "flux2-klein": FamilyFacts(
            "Flux2KleinPipeline",
            _FLOW_EULER,
            16,
            image_to_image=False,
            negative_prompt=False,
            loras=False,
        ),
        "pixart": FamilyFacts(
            "PixArtSigmaPipeline",
            ("dpmpp-2m", *(name for name in _DIFFUSION if name != "dpmpp-2m")),
            16,
            image_to_image=False,
            loras=False,
        ),
        "sana": FamilyFacts(
            "SanaPipeline", ("flow-dpmpp-2m", "flow-euler", "flow-unipc"), 32, image_to_image=False
        ),
        "sana-sprint": FamilyFacts(
            "SanaSprintPipeline", ("scm",), 32, "up", negative_prompt=False, loras=False
        ),
        "qwen-image": FamilyFacts(
            "QwenImagePipeline", _FLOW_EULER, 16, "up", inpainting=True, true_cfg=True
        ),
        "z-image": FamilyFacts("ZImagePipeline", _FLOW_EULER, 16, "up", inpainting=True),
        "lumina2": FamilyFacts("Lumina2Pipeline", _FLOW_EULER, 16, image_to_image=False),
    }
)
"""Family -> rules. `pipeline` (any other, one image at a time) and `simulated` are not here: what
they take only the engine knows."""


def schedulers_for(family: str | None) -> tuple[str, ...]:
    """The schedulers that a job of this family may name; all there are where nothing is known."""
    facts = FAMILIES.get(family or "")
    return facts.schedulers if facts else tuple(SCHEDULERS)


def family_of_pipeline(class_name: str) -> str | None:
    """The family whose checkpoints name this class in their `model_index.json`."""
    return next(
        (
            name
            for name, facts in FAMILIES.items()
            if class_name in (facts.pipeline, facts.inpaint_checkpoint)
        ),
        None,
    )


def possible_steps(
    steps: int, strength: float | None, scheduler: str, family: str | None
) -> frozenset[int]:
    """How many steps may run: one number where the family tells, or makes no difference.

    Args:
        steps: of the whole schedule.
        strength: (0, 1]; None without an initial image.
        scheduler: wire name. Stable Diffusion cuts its schedule even with the scheduler `lcm`;
            where the family is not known, it may stand for a latent consistency model.
        family: from heartbeats. `flow` is any other pipeline that rounds up, `pipeline` any
            other that rounds down.
    """
    rules = _strength_rules(scheduler, family)
    return frozenset(steps_to_run(steps, strength, rule) for rule in rules)


def _strength_rules(scheduler: str, family: str | None) -> tuple[StrengthRule, ...]:
    facts = FAMILIES.get(family or "")
    if facts is not None:
        return (facts.strength_rule,)
    if family == "flow":
        return ("up",)
    if family == "simulated":
        return ("all",) if scheduler == "lcm" else ("down",)
    if family is not None:
        return ("down",)
    return ("down", "up", "all") if scheduler == "lcm" else ("down", "up")

"""What a model cannot do: its family, its LoRAs and ControlNets, and how it reads prompts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from api.core.errors import FieldError, broken_rules, did_you_mean
from api.jobs.sizes import broken_upscale_limit
from api.jobs.submission import JobSubmission
from shared.core.families import FAMILIES, FamilyFacts
from shared.core.model_catalog import ModelCatalog, ModelSpec, lora_fits
from shared.core.schedulers import SCHEDULERS
from shared.jobs.models import UploadedLora

if TYPE_CHECKING:
    from api.jobs.planning import Plan


_UNLISTED = ("pipeline", "flow")
"""Families that are not in `FAMILIES`: what they can is what their one call in diffusers takes."""


def _supports(family: str | None, what: str) -> bool:
    """Whether the family has this; also where it is not known yet."""
    facts = FAMILIES.get(family or "")
    return family not in _UNLISTED if facts is None else bool(getattr(facts, what))


def broken_family_rules(
    plan: "Plan",
    spec: ModelSpec,
    facts: FamilyFacts | None,
    submission: JobSubmission,
    family: str | None,
) -> list[FieldError]:
    """What models of this family cannot do; nothing where the family is not known."""
    errors = []
    if submission.masks and not _supports(family, "inpainting"):
        message = f"{spec.name} does not support inpainting."
        errors.append(
            FieldError(
                pointer=f"/{submission.masks[0]}", code="inpaint_not_supported", message=message
            )
        )
    if facts is None:
        return errors
    name, step = spec.name, facts.size_multiple
    true_scale = spec.true_guidance_scale if plan.true_cfg_scale is None else plan.true_cfg_scale
    negative = facts.negative_prompt or true_scale is not None
    size = f"{name} makes images whose sides are multiples of {step} pixels."
    return errors + broken_rules(
        (plan.width % step == 0, "/width", "size_not_supported", size),
        (plan.height % step == 0, "/height", "size_not_supported", size),
        (
            plan.scheduler in facts.schedulers or plan.scheduler not in SCHEDULERS,
            "/scheduler",
            "scheduler_not_supported",
            f"{name} runs with {', '.join(facts.schedulers)}.",
        ),
        (
            negative or not plan.negative_prompt,
            "/negative_prompt",
            "negative_prompt_not_supported",
            f"{name} does not support negative prompts.",
        ),
        (
            facts.true_cfg or plan.true_cfg_scale is None,
            "/true_cfg_scale",
            "true_cfg_scale_not_supported",
            f"{name} does not support true_cfg_scale; use guidance_scale.",
        ),
        (
            facts.image_to_image or submission.init_image is None,
            "/init_image",
            "init_image_not_supported",
            f"{name} does not support image-to-image.",
        ),
    )


def broken_hires_rules(
    hires: Mapping[str, Any] | None, steps_to_run: int, spec: ModelSpec, family: str | None
) -> list[FieldError]:
    """What the model cannot do in a second pass."""
    if hires is None:
        return []
    facts, name = FAMILIES.get(family or ""), spec.name
    errors = broken_rules(
        (
            facts is None or facts.image_to_image,
            "/hires",
            "hires_not_supported",
            f"{name} does not support image-to-image, and so no second pass.",
        ),
        (
            hires["upscaler"] == "lanczos" or family not in _UNLISTED,
            "/hires/upscaler",
            "upscaler_not_supported",
            f"{name} upscales pixels only, with lanczos.",
        ),
        (
            hires["steps"] <= spec.max_steps,
            "/hires/steps",
            "steps_over_limit",
            f"{name} takes {spec.max_steps} steps at most.",
        ),
        (
            steps_to_run >= 1,
            "/hires/strength",
            "strength_too_low",
            f"steps × strength must be at least 1; it is {hires['steps']} × {hires['strength']}.",
        ),
    )
    too_large = broken_upscale_limit(hires, spec)
    return [*errors, too_large] if too_large else errors


def broken_lora_rules(
    plan: "Plan",
    spec: ModelSpec,
    catalog: ModelCatalog,
    own: Mapping[str, UploadedLora],
    family: str | None,
) -> list[FieldError]:
    """LoRAs that there are not, that come twice, or that the model cannot take."""
    if not plan.loras:
        return []
    if spec.fuse_qkv or not _supports(family, "loras"):
        message = f"{spec.name} does not support LoRAs."
        return [FieldError(pointer="/loras", code="loras_not_supported", message=message)]
    errors, names = [], [str(lora["name"]) for lora in plan.loras]
    for index, name in enumerate(names):
        lora = catalog.get_lora(name) or own.get(name)
        if lora is None:
            code, message = "unknown_lora", _no_such_lora(name, catalog)
        elif name in names[:index]:
            code, message = "duplicate_lora", f"{name} is listed twice."
        elif family is not None and not lora_fits(lora.family, family):
            code = "lora_not_supported"
            message = f"{name} is for models of the family {lora.family}; {spec.name} is {family}."
        else:
            continue
        errors.append(FieldError(pointer=f"/loras/{index}/name", code=code, message=message))
    return errors


def broken_control_rules(
    submission: JobSubmission, spec: ModelSpec, catalog: ModelCatalog, family: str | None
) -> list[FieldError]:
    """ControlNets that there are not, or that the model cannot take."""
    if not submission.controls:
        return []
    if not _supports(family, "controlnets"):
        message = f"{spec.name} does not support ControlNets."
        return [FieldError(pointer="/controls", code="controls_not_supported", message=message)]
    errors = []
    if not _supports(family, "control_images"):
        beside = {"init_image": "an initial image", "hires": "a second pass"}
        errors += [
            FieldError(
                pointer="/controls",
                code=f"controls_with_{name}",
                message=f"{spec.name} takes ControlNets or {what}, not both.",
            )
            for name, what in beside.items()
            if getattr(submission, name) is not None
        ]
    for index, control in enumerate(submission.controls):
        net = catalog.get_controlnet(control.name)
        if net is None:
            code, message = "unknown_controlnet", _no_such_controlnet(control.name, catalog)
        elif family is not None and not net.fits(family):
            code = "controlnet_not_supported"
            message = (
                f"{net.name} is for models of the family {net.family}; {spec.name} is {family}."
            )
        else:
            continue
        errors.append(FieldError(pointer=f"/controls/{index}/name", code=code, message=message))
    return errors


def broken_prompt_rules(
    submission: JobSubmission, name: str, family: str | None
) -> list[FieldError]:
    """Ways to read a prompt that the model's text encoders do not have."""
    return broken_rules(
        (
            submission.prompt_syntax == "plain" or _supports(family, "prompt_weights"),
            "/prompt_syntax",
            "prompt_syntax_not_supported",
            f"{name} does not support prompt weights; SD, SDXL, SD3 and LCM do.",
        ),
        (
            not submission.long_prompt or _supports(family, "long_prompts"),
            "/long_prompt",
            "long_prompt_not_supported",
            f"{name} does not support long prompts; SD, SDXL and LCM do.",
        ),
    )


def _no_such_lora(name: str, catalog: ModelCatalog) -> str:
    names = [spec.name for spec in catalog.lora]
    guess = did_you_mean(name, names)
    return f"There is no LoRA {name[:64]!r}.{guess} GET /v1/loras has them all."


def _no_such_controlnet(name: str, catalog: ModelCatalog) -> str:
    names = [spec.name for spec in catalog.controlnet]
    guess = did_you_mean(name, names)
    return f"There is no ControlNet {name[:64]!r}.{guess} GET /v1/models has each model's."

"""Submissions: of the Generate tab's form, once it is valid, and of what made an earlier job."""

from collections.abc import Mapping
from typing import Any

import msgspec
import streamlit as st

from darkroom import Job
from darkroom.errors import ValidationFailed
from darkroom.playground import form
from darkroom.playground import state as page
from darkroom.playground.connection import connect
from darkroom.types.jobs import JobSettings


def problems() -> dict[str, str]:
    """Field → why it is invalid."""
    model, state = form.chosen_model(), st.session_state
    found = {} if state[form.PROMPT].strip() else {"prompt": "Describe the image in a few words."}
    limits = {
        "width": (form.WIDTH, 64, model.max_width, model.size_multiple),
        "height": (form.HEIGHT, 64, model.max_height, model.size_multiple),
        "steps": (form.STEPS, 1, model.max_steps, 1),
    }
    if state[form.HIRES] and state[form.HIRES_STEPS] is not None:
        limits["hires/steps"] = (form.HIRES_STEPS, 1, model.max_steps, 1)
    for field, (key, *bounds) in limits.items():
        why = _problem(state[key], *bounds)
        if why:
            found[field] = why
    return found


def _problem(value: int | None, least: int, most: int, step: int) -> str | None:
    if value is None:
        return "Enter a number."
    if not least <= value <= most:
        return f"Must be {least} to {most}, not {value}."
    return None if value % step == 0 else f"Must be a multiple of {step}, not {value}."


def body() -> dict[str, Any]:
    """The form as arguments of `client.jobs.submit`."""
    state = st.session_state
    fields: dict[str, Any] = {
        "prompt": state[form.PROMPT],
        "negative_prompt": state[form.NEGATIVE] or None,
        "num_images": state[form.COUNT],
        "seed": state[form.SEED] if state[form.SEED_MODE] != form.RANDOM else None,
        "model": state[form.MODEL],
        "width": state[form.WIDTH],
        "height": state[form.HEIGHT],
        "steps": state[form.STEPS],
        "guidance_scale": state[form.GUIDANCE],
        "scheduler": state[form.SCHEDULER],
        "prompt_syntax": "weighted" if state[form.WEIGHTED] else None,
        "long_prompt": state[form.LONG] or None,
    }
    if state.get(form.LORAS):
        fields["loras"] = [
            {"name": name, "scale": state.get(form.LORA_SCALE.format(name), 1.0)}
            for name in state[form.LORAS]
        ]
    fields["controls"] = form.controls() or None
    if state[form.HIRES]:
        fields["hires"] = {
            "scale": state[form.HIRES_SCALE],
            "strength": state[form.HIRES_STRENGTH],
            "upscaler": state[form.UPSCALER],
        }
        if state[form.HIRES_STEPS] is not None:
            fields["hires"]["steps"] = state[form.HIRES_STEPS]
    initial = form.initial_image()
    if initial is not None:
        fields |= {"init_image": initial.id, "strength": state[form.STRENGTH]}
        if state[form.RESIZE] == form.KEEP_SHAPE:
            del fields["width"], fields["height"]
        else:
            fields["resize_mode"] = state[form.RESIZE]
        mask = form.drawn_mask()
        if mask is not None:
            fields |= {"mask_image": mask.id, "mask_blur": state[form.MASK_BLUR]}
    return {name: value for name, value in fields.items() if value is not None}


def settings_of(job: Job) -> dict[str, Any]:
    """The fields of a submission that makes the job's images again."""
    settings: dict[str, Any] = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "model": job.model,
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "true_cfg_scale": job.true_cfg_scale,
        "scheduler": job.scheduler,
        "init_image": job.init_image,
        "mask_image": job.mask_image,
        "strength": job.strength,
        "resize_mode": job.resize_mode,
        "loras": [{"name": lora.name, "scale": lora.scale} for lora in job.loras] or None,
        "output_format": job.output_format,
        "num_images": len(job.seeds),
        "seeds": list(job.seeds),
    }
    for option in msgspec.structs.fields(JobSettings):
        value = getattr(job, option.name)
        if value != option.default:
            settings[option.name] = _without_none(msgspec.to_builtins(value))
    if job.kind == "upscale":  # as the image was made that it comes from
        settings |= {"init_image": None, "hires": None}
    elif job.hires is not None:
        del settings["hires"]["width"], settings["hires"]["height"]
    filled: dict[str, Any] = _without_none(settings)
    return filled


def _without_none(value: Any) -> Any:
    """The value; of objects in it, what says something."""
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _without_none(each) for name, each in value.items() if each is not None}


def submit(fields: Mapping[str, Any]) -> None:
    """Submit a job with previews and show it; for callbacks, since it may leave a notice."""
    state, session_id = st.session_state, page.session()
    state.pop(form.ERRORS, None)
    with page.errors_shown_on_top():
        try:
            job = connect().jobs.submit(**fields, session_id=session_id, previews=True).job
        except ValidationFailed as error:
            state[form.ERRORS] = {
                rule.pointer.strip("/"): rule.message for rule in error.errors if rule.pointer
            }
            raise
        page.show_job(job)
        step = len(job.seeds) if state[form.SEED_MODE] == form.INCREASING else 0
        state[form.SEED] = min(form.MAX_SEED, job.seeds[0] + step)

"""Fill the Generate tab's form: from a job's settings, or from the draft that a tab kept."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import streamlit as st

from darkroom.errors import NotFoundError
from darkroom.playground import form
from darkroom.playground.connection import loras_for, models, thumbnail
from darkroom.playground.state import errors_shown_on_top
from darkroom.types.service import Model

_ABSENT: dict[str, Any] = {
    "true_cfg_scale": None,
    "references": [],
    "output_format": "png",
    "output_quality": None,
}
"""Field of the API that this form lacks → its default."""
_ABSENT_OF_MASK: dict[str, Any] = {
    "mask_from_alpha": False,
    "masked_content": "original",
    "padding_mask_crop": None,
    "preserve_unmasked": True,
}
"""Those that need a mask."""


def fill(settings: Mapping[str, Any], kind: str) -> list[str]:
    """Fill the form from a submission, with its seed fixed; return notes on what did not fit.

    Args:
        settings: fields of `POST /v1/jobs`; missing ones get their defaults.
        kind: of the job that they come from.
    """
    state, notes = st.session_state, []
    available = {model.name: model for model in models()}
    name = settings.get("model")
    if name in available:
        state[form.MODEL] = name
    elif name is not None:
        notes.append(f"The model {name} is not available here; using {state[form.MODEL]} instead.")
    form.use_defaults()
    model = form.chosen_model()
    state[form.PROMPT] = settings.get("prompt") or ""
    state[form.NEGATIVE] = settings.get("negative_prompt") or ""
    seed = _first_seed(settings)
    if seed is not None:
        state[form.SEED_MODE], state[form.SEED] = form.FIXED, seed
    state[form.COUNT] = min(form.MAX_IMAGES, settings.get("num_images") or 1)
    for key, field, most in (
        (form.WIDTH, "width", model.max_width),
        (form.HEIGHT, "height", model.max_height),
        (form.STEPS, "steps", model.max_steps),
    ):
        value = settings.get(field)
        if value is not None:
            state[key] = min(value, most)
            if value > most:
                notes.append(f"{model.name} allows {field} up to {most}; the image had {value}.")
    if settings.get("guidance_scale") is not None:
        state[form.GUIDANCE] = float(settings["guidance_scale"])
    scheduler = settings.get("scheduler")
    if scheduler in model.schedulers:
        state[form.SCHEDULER] = scheduler
    elif scheduler is not None:
        notes.append(
            f"{model.name} has no scheduler {scheduler}; using {state[form.SCHEDULER]} instead."
        )
    notes += _fill_loras(settings, model.name)
    state[form.WEIGHTED] = settings.get("prompt_syntax") == "weighted"
    state[form.LONG] = bool(settings.get("long_prompt"))
    notes += _fill_hires(settings, model)
    notes += _fill_controls(settings, model)
    notes += _fill_initial(settings, kind)
    return notes + _left_out(settings, kind)


def _first_seed(settings: Mapping[str, Any]) -> int | None:
    seeds = settings.get("seeds") or [settings.get("seed")]
    seed: int | None = seeds[0]
    return seed


def _fill_loras(settings: Mapping[str, Any], model: str) -> list[str]:
    state, notes = st.session_state, []
    known = {lora.name for lora in loras_for(model)}
    for lora in settings.get("loras") or ():
        name = lora["name"]
        if name in known:
            state[form.LORAS] = [*state[form.LORAS], name]
            state[form.LORA_SCALE.format(name)] = float(lora.get("scale", 1.0))
        else:
            notes.append(f"The LoRA {name} is not available here; leaving it out.")
    return notes


def _fill_controls(settings: Mapping[str, Any], model: Model) -> list[str]:
    state, notes = st.session_state, []
    shown = {
        each["image"]: {"label": each["label"], "preview": each["preview"]}
        for each in state[form.CONTROLS]
    }
    state[form.CONTROLS] = []
    for control in settings.get("controls") or ():
        name, image = control["name"], control["image"]
        if name not in model.controlnets:
            notes.append(f"The ControlNet {name} is not available here; leaving it out.")
            continue
        preview = None
        if image.startswith("img_"):
            with suppress(NotFoundError):  # deleted since; the API will say so of its field
                preview = thumbnail(image)
        form.add_control(
            image,
            _label(image),
            preview,
            name=name,
            preprocess=control.get("preprocess", "none"),
            thresholds=(control.get("low", 100), control.get("high", 200)),
            scale=float(control.get("scale", 1.0)),
            part=(float(control.get("start", 0.0)), float(control.get("end", 1.0))),
        )
        state[form.CONTROLS][-1] |= shown.get(image, {})
    return notes


def _fill_hires(settings: Mapping[str, Any], model: Model) -> list[str]:
    state, hires = st.session_state, settings.get("hires")
    state[form.HIRES], state[form.HIRES_STEPS] = hires is not None, None
    if hires is None:
        return []
    notes: list[str] = []
    scale, strength = float(hires.get("scale", 2.0)), float(hires.get("strength", 0.7))
    state[form.HIRES_SCALE] = _within(
        scale, form.MIN_HIRES_SCALE, form.MAX_HIRES_SCALE, "scales", notes
    )
    state[form.HIRES_STRENGTH] = _within(strength, form.MIN_STRENGTH, 1.0, "strengths", notes)
    state[form.UPSCALER] = hires.get("upscaler", "latent")
    steps = hires.get("steps")
    if steps is not None and steps != settings.get("steps"):
        state[form.HIRES_STEPS] = min(steps, model.max_steps)
        if steps > model.max_steps:
            notes.append(
                f"{model.name} allows steps up to {model.max_steps}; the second pass had {steps}."
            )
    return notes


def _within(value: float, least: float, most: float, what: str, notes: list[str]) -> float:
    """The value, or the nearest that the form's slider has, which a note then tells."""
    if not least <= value <= most:
        notes.append(f"This form has {what} of {least:g} to {most:g}; the image had {value:g}.")
    return min(max(value, least), most)


def _fill_initial(settings: Mapping[str, Any], kind: str) -> list[str]:
    form.clear_initial_image()
    notes: list[str] = []
    source = settings.get("init_image")
    if not source:
        return notes
    _use_source(source, _label(source))
    if settings.get("mask_image"):
        st.session_state[form.MASK] = form.Mask(settings["mask_image"], None)
        st.session_state[form.MASK_BLUR] = settings.get("mask_blur", form.DEFAULT_MASK_BLUR)
    if kind == "inpaint" and not settings.get("mask_image"):
        # That of the mask's part, 1.0 as a rule, would leave nothing of the whole image.
        st.session_state[form.STRENGTH] = form.DEFAULT_STRENGTH
    elif settings.get("strength") is not None:
        strength = float(settings["strength"])
        st.session_state[form.STRENGTH] = _within(
            strength, form.MIN_STRENGTH, 1.0, "strengths", notes
        )
    st.session_state[form.RESIZE] = settings.get("resize_mode") or form.KEEP_SHAPE
    return notes


def _label(source: str) -> str:
    return "an earlier image" if source.startswith("img_") else "an uploaded image"


def _use_source(source: str, label: str) -> None:
    if source.startswith("img_"):
        form.use_as_initial(source, label)
    else:
        st.session_state[form.INITIAL] = form.InitialImage(source, label, None)


def _left_out(settings: Mapping[str, Any], kind: str) -> list[str]:
    absent, names = dict(_ABSENT), []
    if settings.get("expand"):
        names.append("The expansion")
    elif settings.get("mask_image"):
        absent |= _ABSENT_OF_MASK
    elif kind == "inpaint":
        names.append("The mask")
    if kind == "txt2img":
        absent["resize_mode"] = "fill"  # of what ControlNets see
    names += [
        name for name in absent if settings.get(name, absent[name]) not in (absent[name], None)
    ]
    return [f"{name} is left out: this form has none." for name in names]


def to_draft(value: form.InitialImage | form.Mask) -> dict[str, str | None]:
    """What a browser tab keeps of it."""
    if isinstance(value, form.Mask):
        return {"id": value.id, "drawing": value.drawing}
    return {"id": value.id, "label": value.label}


def restore(draft: Mapping[str, Any], typed: Mapping[str, str]) -> None:
    """Fill the form as it was; for callbacks.

    Args:
        draft: values by the keys of `form`.
        typed: what stands in fields although it was not sent yet.
    """
    form.prepare()
    state = st.session_state
    initial, mask = draft.get(form.INITIAL), draft.get(form.MASK)
    for name, value in draft.items():
        old = state.get(name)
        given = value
        if isinstance(old, float) and isinstance(value, int):  # JavaScript writes 7.0 as 7,
            given = float(value)
        elif isinstance(old, tuple) and isinstance(value, list):  # and has no tuples.
            given = tuple(value)
        if name not in {form.INITIAL, form.MASK} and (old is None or type(given) is type(old)):
            state[name] = given
    for name, text in typed.items():
        if isinstance(state.get(name), str):
            state[name] = text
        elif text.isdecimal():
            state[name] = int(text)
    if initial:
        with errors_shown_on_top():
            _use_source(initial["id"], initial["label"])
            if mask:
                state[form.MASK] = form.Mask(mask["id"], mask["drawing"])

"""The settings of the Generate tab: their widgets, and filling them from a picture or a receipt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from darkroom.playground import pictures
from darkroom.playground.connection import models
from darkroom.types.service import Model

MAX_SEED = 2**53 - 1
MAX_IMAGES = 16
"""The server's default limit; it says so itself where it is configured lower."""
DEFAULT_STRENGTH = 0.6
RANDOM, KEEP = "Random", "Keep"

PROMPT = "form-prompt"
NEGATIVE = "form-negative"
SEED_MODE = "form-seed-mode"
SEED = "form-seed"
COUNT = "form-count"
MODEL = "form-model"
WIDTH = "form-width"
HEIGHT = "form-height"
STEPS = "form-steps"
GUIDANCE = "form-guidance"
SCHEDULER = "form-scheduler"
STRENGTH = "form-strength"
RESIZE = "form-resize"
KEEP_SHAPE = "keep"
RESIZE_MODES = {
    KEEP_SHAPE: "Same shape as the initial image",
    "fill": "Width and height of the form: crop it",
    "fit": "Width and height of the form: show all of it",
    "stretch": "Width and height of the form: stretch it",
}
"""Value → label. Those of the API, and one that leaves the size to the server."""
INITIAL = "form-initial"
"""An `Initial`, or absent; no widget's key."""


@dataclass(frozen=True)
class Initial:
    """The initial image of img2img: an upload or a picture that was made before."""

    id: str
    label: str
    preview: bytes | None
    """None where only its id is known."""


def prepare() -> None:
    """Gives every setting that has no value yet its default."""
    available = models()
    default = next((model for model in available if model.default), available[0])
    state = st.session_state
    state.setdefault(PROMPT, "")
    state.setdefault(NEGATIVE, "")
    state.setdefault(SEED_MODE, RANDOM)
    state.setdefault(SEED, 0)
    state.setdefault(COUNT, 1)
    state.setdefault(STRENGTH, DEFAULT_STRENGTH)
    state.setdefault(RESIZE, KEEP_SHAPE)
    if state.get(MODEL) not in {model.name for model in available}:
        state[MODEL] = default.name
        use_defaults()
    elif STEPS not in state:
        use_defaults()


def use_defaults() -> None:
    """Puts size, steps, guidance and scheduler to the defaults of the chosen model."""
    model = chosen_model()
    state = st.session_state
    state[WIDTH], state[HEIGHT] = model.default_width, model.default_height
    state[STEPS] = model.default_steps
    state[GUIDANCE] = float(model.default_guidance_scale)
    state[SCHEDULER] = model.default_scheduler


def chosen_model() -> Model:
    """The model that the form names."""
    return next(model for model in models() if model.name == st.session_state[MODEL])


def body() -> dict[str, Any]:
    """The submission that the form describes, as arguments of `client.jobs.submit`."""
    state = st.session_state
    asked: dict[str, Any] = {
        "prompt": state[PROMPT],
        "negative_prompt": state[NEGATIVE] or None,
        "num_images": state[COUNT],
        "seed": state[SEED] if state[SEED_MODE] == KEEP else None,
        "model": state[MODEL],
        "width": state[WIDTH],
        "height": state[HEIGHT],
        "steps": state[STEPS],
        "guidance_scale": state[GUIDANCE],
        "scheduler": state[SCHEDULER],
    }
    initial: Initial | None = state.get(INITIAL)
    if initial is not None:
        asked |= {"init_image": initial.id, "strength": state[STRENGTH]}
        if state[RESIZE] == KEEP_SHAPE:
            del asked["width"], asked["height"]
        else:
            asked["resize_mode"] = state[RESIZE]
    return {name: value for name, value in asked.items() if value is not None}


def fill(settings: Mapping[str, Any]) -> list[str]:
    """Puts a submission's fields into the form, with its seed kept; says what did not fit.

    ``settings`` has the fields of `POST /v1/jobs`; those that are missing get their defaults.
    """
    state, notes = st.session_state, []
    available = {model.name: model for model in models()}
    name = settings.get("model")
    if name in available:
        state[MODEL] = name
    elif name is not None:
        notes.append(f"The model {name} is not served here; {state[MODEL]} stands in for it.")
    use_defaults()
    model = chosen_model()
    state[PROMPT] = settings.get("prompt") or ""
    state[NEGATIVE] = settings.get("negative_prompt") or ""
    seed = _first_seed(settings)
    if seed is not None:
        state[SEED_MODE], state[SEED] = KEEP, seed
    state[COUNT] = min(MAX_IMAGES, settings.get("num_images") or 1)
    for key, field, most in (
        (WIDTH, "width", model.max_width),
        (HEIGHT, "height", model.max_height),
        (STEPS, "steps", model.max_steps),
    ):
        value = settings.get(field)
        if value is not None:
            state[key] = min(value, most)
            if value > most:
                notes.append(
                    f"{model.name} goes up to {most} for {field}; the picture had {value}."
                )
    if settings.get("guidance_scale") is not None:
        state[GUIDANCE] = float(settings["guidance_scale"])
    scheduler = settings.get("scheduler")
    if scheduler in model.schedulers:
        state[SCHEDULER] = scheduler
    elif scheduler is not None:
        notes.append(f"{model.name} has no scheduler {scheduler}; {state[SCHEDULER]} stands in.")
    _fill_initial(settings)
    return notes


def use_as_initial(image_id: str, label: str) -> None:
    """Makes a picture that was generated before the initial image."""
    st.session_state[INITIAL] = Initial(image_id, label, pictures.thumbnail(image_id))
    st.session_state[RESIZE] = KEEP_SHAPE


def forget_initial() -> None:
    """Goes back to text to image."""
    st.session_state.pop(INITIAL, None)


def _first_seed(settings: Mapping[str, Any]) -> int | None:
    seeds = settings.get("seeds") or [settings.get("seed")]
    seed: int | None = seeds[0]
    return seed


def _fill_initial(settings: Mapping[str, Any]) -> None:
    forget_initial()
    source = settings.get("init_image")
    if not source:
        return
    if source.startswith("img_"):
        use_as_initial(source, "a picture made before")
    else:
        st.session_state[INITIAL] = Initial(source, "an uploaded picture", None)
    if settings.get("strength") is not None:
        st.session_state[STRENGTH] = float(settings["strength"])
    st.session_state[RESIZE] = settings.get("resize_mode") or KEEP_SHAPE


def show_text() -> None:
    """Draws the prompt and the negative prompt."""
    st.text_area(
        "Prompt",
        key=PROMPT,
        max_chars=4000,
        height=104,
        placeholder="What shall the picture show?",
        on_change="ignore",
        persist_state="session",
    )
    st.text_input(
        "Negative prompt",
        key=NEGATIVE,
        max_chars=4000,
        placeholder="What it shall not show",
        on_change="ignore",
        persist_state="session",
    )


def show_seed_and_count() -> None:
    """Draws the seed with its mode, and how many pictures."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
        mode = st.segmented_control(
            "Seed",
            [RANDOM, KEEP],
            key=SEED_MODE,
            required=True,
            persist_state="session",
            help="The same seed and settings give the same picture. Random draws a new one each "
            "time and shows it here, ready to be kept. Picture i of several has seed + i.",
        )
        st.number_input(
            "Seed number",
            min_value=0,
            max_value=MAX_SEED,
            key=SEED,
            disabled=mode != KEEP,
            label_visibility="collapsed",
            on_change="ignore",
            persist_state="session",
            width=186,
        )
        st.number_input(
            "Pictures",
            min_value=1,
            max_value=MAX_IMAGES,
            key=COUNT,
            on_change="ignore",
            persist_state="session",
            width=92,
        )


def show_settings() -> None:
    """Draws what has a good default: model, size, steps, guidance, scheduler."""
    names = [model.name for model in models()]
    st.selectbox("Model", names, key=MODEL, on_change=use_defaults, persist_state="session")
    model = chosen_model()
    if model.served is False:
        st.warning("No worker serves this model now; its jobs wait until one does.")
    left, right = st.columns(2, wrap=False)
    _number(left, "Width", WIDTH, 64, model.max_width, step=8)
    _number(right, "Height", HEIGHT, 64, model.max_height, step=8)
    _number(left, "Steps", STEPS, 1, model.max_steps, step=1)
    right.number_input(
        "Guidance",
        min_value=0.0,
        max_value=50.0,
        step=0.5,
        key=GUIDANCE,
        on_change="ignore",
        persist_state="session",
        help="How closely the picture follows the prompt; 1 and below do not use it.",
    )
    st.selectbox(
        "Scheduler",
        model.schedulers,
        key=SCHEDULER,
        on_change="ignore",
        persist_state="session",
    )


def _number(column: Any, label: str, key: str, least: int, most: int, *, step: int) -> None:
    # Given to the field, Streamlit would put the last valid number in place of a wrong one.
    column.number_input(
        label,
        step=step,
        key=key,
        on_change="ignore",
        persist_state="session",
        help=f"Up to {most}.",
    )
    problem = _problem(st.session_state[key], least, most, step)
    if problem:
        column.caption(f":red[{problem}]")


def _problem(value: int, least: int, most: int, step: int) -> str | None:
    if not least <= value <= most:
        return f"{least} to {most}, not {value}."
    return None if value % step == 0 else f"A multiple of {step}, not {value}."


def problems() -> list[str]:
    """What of the numbers cannot be submitted, as a line for each field."""
    model, state = chosen_model(), st.session_state
    limits = (
        ("Width", WIDTH, 64, model.max_width, 8),
        ("Height", HEIGHT, 64, model.max_height, 8),
        ("Steps", STEPS, 1, model.max_steps, 1),
    )
    found = ((label, _problem(state[key], *bounds)) for label, key, *bounds in limits)
    return [f"**{label}:** {problem}" for label, problem in found if problem]

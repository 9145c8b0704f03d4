"""The Generate tab's form: the keys of its values, their defaults, and what they start from."""

import base64
from dataclasses import dataclass
from typing import Any

import streamlit as st

from darkroom.playground.connection import connect, models, thumbnail
from darkroom.types.service import Model

MAX_SEED = 2**53 - 1
MAX_IMAGES = 16
"""The server's default limit; it says so itself where it is configured lower."""
DEFAULT_STRENGTH = 0.6
MIN_STRENGTH = 0.01
MIN_HIRES_SCALE, MAX_HIRES_SCALE = 1.05, 4.0
RANDOM, FIXED, INCREASING = "Random", "Fixed", "Increasing"

PROMPT = "form-prompt"
NEGATIVE = "form-negative"
SEED_MODE = "form-seed-mode"
SEED = "form-seed"
COUNT = "form-count"
SHAPE = "form-shape"
SHAPES = {"1:1": (1, 1), "4:3": (4, 3), "3:4": (3, 4), "16:9": (16, 9), "9:16": (9, 16)}
"""Label → width and height of a preset."""
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
    "fill": "Use width and height, cropping the image",
    "fit": "Use width and height, showing all of it",
    "stretch": "Use width and height, stretching it",
}
"""Value → label: the API's, and one that leaves the size to the server."""
LORAS = "form-loras"
LORA_SCALE = "form-lora-scale-{}"
MAX_LORAS = 4
CONTROLS = "form-controls"
"""The images that ControlNets follow: each one's `image`, `label`, `preview` and `slot`."""
MAX_CONTROLS = 2
CONTROL = "form-control-{}-{}"
"""Of a slot, the `name` of its ControlNet, and settings."""
CANNY = "canny"
CONTROL_DEFAULTS: dict[str, Any] = {
    "preprocess": CANNY,
    "thresholds": (100, 200),
    "scale": 1.0,
    "part": (0.0, 1.0),
}
PREPROCESSES = {CANNY: "The image’s edges", "none": "The image itself"}
"""Value → label."""
WEIGHTED = "form-weighted"
LONG = "form-long"
HIRES = "form-hires"
HIRES_SCALE = "form-hires-scale"
HIRES_STRENGTH = "form-hires-strength"
HIRES_STEPS = "form-hires-steps"
"""None: those of the first pass."""
UPSCALER = "form-upscaler"
UPSCALERS = {
    "latent": "Latent: invents most detail",
    "lanczos": "Lanczos: stays closer to the first pass",
}
"""Value → label."""
INITIAL = "form-initial"
"""An `InitialImage`, or absent; not the key of a widget."""
MASK = "form-mask"
"""A `Mask` of it, or absent."""
MASK_RESETS = "mask-resets"
"""How often it was removed; the brush then starts over."""
MASK_BLUR = "form-mask-blur"
DEFAULT_MASK_BLUR = 4
ERRORS = "form-errors"
"""Field of the API → what is wrong with it; shown at the field until the next try."""


@dataclass(frozen=True)
class InitialImage:
    """The initial image of img2img: an upload or an earlier image."""

    id: str
    label: str
    preview: bytes | None
    """A small WebP; None if only its id is known."""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Mask:
    """The part of the initial image to repaint."""

    id: str
    """An upload's, or a data URL."""
    drawing: str | None
    """The data URL that was drawn here; None if only its id is known."""


def prepare() -> None:
    """Give every setting without a value its default."""
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
    state.setdefault(MASK_BLUR, DEFAULT_MASK_BLUR)
    state.setdefault(WEIGHTED, False)
    state.setdefault(LONG, False)
    state.setdefault(HIRES, False)
    state.setdefault(HIRES_SCALE, 2.0)
    state.setdefault(HIRES_STRENGTH, 0.7)
    state.setdefault(HIRES_STEPS, None)
    state.setdefault(UPSCALER, "latent")
    for axis in ("x", "y"):
        state.setdefault(f"form-grid-{axis}", "none")
        state.setdefault(f"form-grid-{axis}-values", "")
    if state.get(MODEL) not in {model.name for model in available}:
        state[MODEL] = default.name
        use_defaults()
    elif STEPS not in state:
        use_defaults()


def use_defaults() -> None:
    """Set size, steps, guidance and scheduler to the chosen model's defaults."""
    model = chosen_model()
    state = st.session_state
    state[WIDTH], state[HEIGHT] = model.default_width, model.default_height
    state[STEPS], state[HIRES_STEPS] = model.default_steps, None
    state[GUIDANCE] = float(model.default_guidance_scale)
    state[SCHEDULER] = model.default_scheduler
    state[LORAS] = []
    state[CONTROLS] = [
        each
        for each in state.get(CONTROLS, ())
        if state.get(CONTROL.format(each["slot"], "name")) in model.controlnets
    ]


def chosen_model() -> Model:
    """The model chosen in the form."""
    return next(model for model in models() if model.name == st.session_state[MODEL])


def size_of(shape: str) -> tuple[int, int]:
    """Width and height of a preset, with about as many pixels as the model's default size."""
    model, (across, down) = chosen_model(), SHAPES[shape]
    unit = (model.default_width * model.default_height / (across * down)) ** 0.5
    unit = min(unit, model.max_width / across, model.max_height / down)
    step = model.size_multiple
    width, height = (max(step, round(unit * part / step) * step) for part in (across, down))
    return width, height


def shape() -> str | None:
    """The preset that the form's size is of, if any."""
    size = st.session_state[WIDTH], st.session_state[HEIGHT]
    return next((name for name in SHAPES if size_of(name) == size), None)


def use_shape() -> None:
    """Set the size to the chosen preset's; for callbacks."""
    state = st.session_state
    if state[SHAPE]:
        state[WIDTH], state[HEIGHT] = size_of(state[SHAPE])


def initial_image() -> InitialImage | None:
    """The form's initial image, if any."""
    results: InitialImage | None = st.session_state.get(INITIAL)
    return results


def use_as_initial(image_id: str, label: str) -> None:
    """Make an earlier image the initial image."""
    clear_mask()
    image = connect().images.get(image_id)
    st.session_state[INITIAL] = InitialImage(
        image_id, label, thumbnail(image_id), image.width, image.height
    )
    st.session_state[RESIZE] = KEEP_SHAPE


def clear_initial_image() -> None:
    """Return to text-to-image."""
    st.session_state.pop(INITIAL, None)
    clear_mask()


def drawn_mask() -> Mask | None:
    """The form's mask, if any."""
    mask: Mask | None = st.session_state.get(MASK)
    return mask


def clear_mask() -> None:
    """Repaint the whole image."""
    st.session_state.pop(MASK, None)
    st.session_state[MASK_RESETS] = st.session_state.get(MASK_RESETS, 0) + 1


def takes_control() -> bool:
    """Whether the model has ControlNets, and there is room for one more image."""
    prepare()  # any tab asks, and may be the first
    return bool(chosen_model().controlnets) and len(st.session_state[CONTROLS]) < MAX_CONTROLS


def add_control(image_id: str, label: str, preview: bytes | None, **settings: Any) -> None:
    """Follow one more image, with the model's first ControlNet unless told.

    Args:
        image_id: an upload's, or an earlier image's.
        label: its name.
        preview: a small WebP; None if only its id is known.
        settings: `name`, and those of `CONTROL_DEFAULTS`.
    """
    state = st.session_state
    slot = min({*range(MAX_CONTROLS)} - {each["slot"] for each in state[CONTROLS]})
    shown = base64.b64encode(preview or b"").decode("ascii")  # text, for the draft
    state[CONTROLS] = [
        *state[CONTROLS],
        {"slot": slot, "image": image_id, "label": label, "preview": shown},
    ]
    first = chosen_model().controlnets[0]
    for name, value in ({"name": first} | CONTROL_DEFAULTS | settings).items():
        state[CONTROL.format(slot, name)] = value


def controls() -> list[dict[str, Any]]:
    """What the form follows, as the API takes it."""
    return [
        {"image": each["image"], **_control_settings(each["slot"])}
        for each in st.session_state[CONTROLS]
    ]


def _control_settings(slot: int) -> dict[str, Any]:
    names = ("name", *CONTROL_DEFAULTS)
    settings = {name: st.session_state[CONTROL.format(slot, name)] for name in names}
    low, high = settings.pop("thresholds")
    settings["start"], settings["end"] = settings.pop("part")
    return settings | ({"low": low, "high": high} if settings["preprocess"] == CANNY else {})


def remove_control(image: dict[str, Any]) -> None:
    """Do without it; for callbacks."""
    st.session_state[CONTROLS] = [each for each in st.session_state[CONTROLS] if each != image]


def remove_lora(name: str) -> None:
    """Do without it; for callbacks."""
    st.session_state[LORAS] = [other for other in st.session_state[LORAS] if other != name]

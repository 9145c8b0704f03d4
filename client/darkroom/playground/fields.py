"""The fields of the Generate tab's form, as they are drawn."""

import base64
import io
from functools import partial
from typing import Any

import streamlit as st
from PIL import Image, ImageOps

from darkroom.playground import components, form
from darkroom.playground.connection import connect, loras_for, models
from darkroom.playground.formatting import escape
from darkroom.playground.state import IMAGE_TYPES, errors_shown_on_top, show_uploader, take_upload

_INITIAL_FILE = "initial-file"
_CONTROL_FILE = "control-file"
_PREVIEW_PIXELS = 768
_SMALL_PIXELS = 96
_KEPT: dict[str, Any] = {"on_change": "ignore", "persist_state": "session"}
"""Fields of the form: typing redraws nothing, and values survive a look at another tab."""


def show_text() -> None:
    """Draw the prompt and the negative prompt."""
    st.text_area(
        "Prompt",
        key=form.PROMPT,
        max_chars=4000,
        height=104,
        placeholder="Describe the image",
        **_KEPT,
    )
    _show_error("prompt")
    st.text_input(
        "Negative prompt", key=form.NEGATIVE, max_chars=4000, placeholder="Things to avoid", **_KEPT
    )
    _show_error("negative_prompt")


def show_seed_count_and_shape() -> None:
    """Draw the seed with its mode, the number of images, and presets of their shape."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", wrap=False):
        mode = st.segmented_control(
            "Seed",
            [form.RANDOM, form.FIXED, form.INCREASING],
            key=form.SEED_MODE,
            required=True,
            persist_state="session",
            help="The same seed and settings give the same image. *Random* draws a new seed each "
            "time and shows it here; *Increasing* continues with the next. Image i of several gets "
            "seed + i.",
        )
        st.number_input(
            "Seed number",
            min_value=0,
            max_value=form.MAX_SEED,
            key=form.SEED,
            disabled=mode == form.RANDOM,
            label_visibility="collapsed",
            **_KEPT,
        )
    _show_error("seed")
    st.session_state[form.SHAPE] = form.shape()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", wrap=False):
        st.segmented_control(
            "Shape", list(form.SHAPES), key=form.SHAPE, on_change=form.use_shape, width="stretch"
        )
        st.number_input(
            "Images", min_value=1, max_value=form.MAX_IMAGES, key=form.COUNT, **_KEPT, width=110
        )
    _show_error("num_images")


def show_initial_image() -> None:
    """Draw the initial image and its options, or the uploader for one."""
    initial = form.initial_image()
    with st.expander(
        "Initial image and mask", icon=":material/image:", expanded=initial is not None
    ):
        if initial is None:
            show_uploader(
                "Start from your own image",
                _INITIAL_FILE,
                IMAGE_TYPES,
                max_megabytes=10,
                on_change=_upload_initial_image,
                help="Earlier images work too: choose “Use as initial image” below one.",
            )
            return
        if initial.preview is not None:
            st.caption("Paint over the part to regenerate; the rest stays as it is.")
            components.draw_mask(initial)
        if form.drawn_mask() is not None:
            st.slider(
                "Blur of the mask",
                0,
                64,
                key=form.MASK_BLUR,
                **_KEPT,
                help="Width of the blend at the mask's edge, in pixels.",
            )
        _show_error("mask_image")
        st.slider(
            "Strength",
            form.MIN_STRENGTH,
            1.0,
            step=0.01,
            key=form.STRENGTH,
            **_KEPT,
            help="How much the result may differ from the initial image: little at 0.2, almost "
            "entirely at 1.",
        )
        st.selectbox(
            "Size",
            list(form.RESIZE_MODES),
            format_func=form.RESIZE_MODES.__getitem__,
            key=form.RESIZE,
            **_KEPT,
            help="With the image's own shape, the result has about as many pixels as the model's "
            "default size.",
        )


def _upload_initial_image() -> None:
    file = take_upload(_INITIAL_FILE)
    if file is None:
        return
    with errors_shown_on_top():
        data: bytes = file.getvalue()
        upload = connect().uploads.create(data)
        form.clear_mask()
        preview = _shrink(data, _PREVIEW_PIXELS)
        st.session_state[form.INITIAL] = form.InitialImage(
            upload.id, file.name, preview, upload.width, upload.height
        )
        st.session_state[form.RESIZE] = form.KEEP_SHAPE


def _shrink(data: bytes, most: int) -> bytes:
    """A WebP of the image, upright and small enough to be sent with the page."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image.thumbnail((most, most))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85)
    return file.getvalue()


def show_loras() -> None:
    """Draw the LoRAs that the model may take, and a scale for each that is chosen."""
    known = {lora.name: lora for lora in loras_for(st.session_state[form.MODEL])}
    if not known:
        return
    chosen = st.session_state[form.LORAS]
    with st.expander("LoRAs", icon=":material/style:", expanded=bool(chosen)):
        st.multiselect(
            "LoRAs",
            list(known),
            key=form.LORAS,
            max_selections=form.MAX_LORAS,
            persist_state="session",
        )
        for name in st.session_state[form.LORAS]:
            words = ", ".join(known[name].trigger_words) if name in known else ""
            key = form.LORA_SCALE.format(name)
            st.session_state.setdefault(key, 1.0)
            st.slider(f"{escape(name)}: scale", -4.0, 4.0, step=0.05, key=key, **_KEPT)
            if words:
                st.caption(f"Trigger words for the prompt: {escape(words)}")
        _show_error("loras", parts=True)


def show_controls() -> None:
    """Draw the images that ControlNets follow, and an uploader while there is room for more."""
    controls = st.session_state[form.CONTROLS]
    if not controls and not form.takes_control():
        return
    with st.expander("ControlNets", icon=":material/polyline:", expanded=bool(controls)):
        for number, each in enumerate(controls):
            _show_control(each, f" {number + 1}" if len(controls) > 1 else "")
            _show_error(f"controls/{number}", parts=True)
        if form.takes_control():
            show_uploader(
                "Follow another image" if controls else "Follow an image",
                _CONTROL_FILE,
                IMAGE_TYPES,
                max_megabytes=10,
                on_change=_upload_control,
                help="Earlier images work too: choose “Follow with a ControlNet” below one.",
            )
        _show_error("controls")


def _show_control(image: dict[str, Any], which: str) -> None:
    """Draw an image and how it is followed; `which` tells its fields from another's."""
    key = partial(form.CONTROL.format, image["slot"])
    with st.container(horizontal=True, vertical_alignment="bottom", wrap=False):
        if image["preview"]:
            preview = base64.b64decode(image["preview"])
            st.image(preview, width=_SMALL_PIXELS, alt=image["label"])
        # The server lists none while it knows no worker of the model.
        names = dict.fromkeys((*form.chosen_model().controlnets, st.session_state[key("name")]))
        st.selectbox(f"ControlNet{which}", names, key=key("name"), **_KEPT)
    seen = st.segmented_control(
        f"ControlNet{which} sees",
        list(form.PREPROCESSES),
        format_func=form.PREPROCESSES.__getitem__,
        key=key("preprocess"),
        required=True,
        persist_state="session",
        width="stretch",
        help="Choose *The image itself* for a map of edges, depth or a pose.",
    )
    if seen == form.CANNY:
        st.slider(
            f"Thresholds{which}",
            0,
            255,
            key=key("thresholds"),
            **_KEPT,
            help="Edges above the second are seen, and those above the first that touch them.",
        )
    st.slider(f"Scale{which}", 0.0, 2.0, step=0.05, key=key("scale"), **_KEPT)
    st.slider(f"Part of the steps{which}", 0.0, 1.0, step=0.05, key=key("part"), **_KEPT)


def _upload_control() -> None:
    file = take_upload(_CONTROL_FILE)
    if file is None or not form.takes_control():
        return
    with errors_shown_on_top():
        data: bytes = file.getvalue()
        upload = connect().uploads.create(data)
        form.add_control(upload.id, file.name, _shrink(data, 2 * _SMALL_PIXELS))


def show_settings() -> None:
    """Draw the settings that have good defaults: model, size, steps, guidance, scheduler."""
    names = [model.name for model in models()]
    st.selectbox(
        "Model", names, key=form.MODEL, on_change=form.use_defaults, persist_state="session"
    )
    model = form.chosen_model()
    if model.served is False:
        st.warning("No worker serves this model right now; its jobs will wait for one.")
    left, right = st.columns(2, wrap=False)
    step = model.size_multiple
    _number(left, "Width", form.WIDTH, model.max_width, step)
    _number(right, "Height", form.HEIGHT, model.max_height, step)
    _number(left, "Steps", form.STEPS, model.max_steps)
    right.number_input(
        "Guidance",
        min_value=0.0,
        max_value=50.0,
        step=0.5,
        key=form.GUIDANCE,
        **_KEPT,
        help="How closely the image follows the prompt; no guidance at 1 and below.",
    )
    st.selectbox("Scheduler", model.schedulers, key=form.SCHEDULER, **_KEPT)
    st.checkbox(
        "Weights in prompts",
        key=form.WEIGHTED,
        **_KEPT,
        help=r"`(word:1.3)`, `(word)` and `[word]` make a word count more or less; `\(` is a "
        "parenthesis. SD, SDXL and LCM only.",
    )
    st.checkbox(
        "Long prompts",
        key=form.LONG,
        **_KEPT,
        help="Read prompts beyond 75 tokens, too. SD, SDXL and LCM only.",
    )
    _show_hires()


def _show_hires() -> None:
    """Draw the second pass: a toggle, and its settings once it is on."""
    asked = st.toggle(
        "Hires: make it larger in a second pass",
        key=form.HIRES,
        **_KEPT,
        help="Width and height are those of the first pass.",
    )
    if not asked:
        return
    state = st.session_state
    limits = (form.MIN_HIRES_SCALE, form.MAX_HIRES_SCALE)
    st.slider("Scale", *limits, step=0.05, key=form.HIRES_SCALE, **_KEPT)
    scale = state[form.HIRES_SCALE]
    width, height = (round(state[side] * scale) for side in (form.WIDTH, form.HEIGHT))
    st.caption(f"About {width} × {height} pixels in the end.")
    st.slider(
        "Strength of the second pass",
        form.MIN_STRENGTH,
        1.0,
        step=0.01,
        key=form.HIRES_STRENGTH,
        **_KEPT,
        help="How much it may change. Below about 0.5, latent upscaling stays blurred.",
    )
    most = form.chosen_model().max_steps
    _number(st, "Steps of the second pass", form.HIRES_STEPS, most)
    st.selectbox(
        "Upscaler",
        list(form.UPSCALERS),
        format_func=form.UPSCALERS.__getitem__,
        key=form.UPSCALER,
        **_KEPT,
    )


def _number(place: Any, label: str, key: str, most: int, step: int = 1) -> None:
    # A field with limits would silently replace a wrong number by the last valid one.
    place.number_input(label, step=step, key=key, **_KEPT, help=f"Up to {most}.")
    _show_error(key.removeprefix("form-").replace("-", "/"), place)


def _show_error(field: str, place: Any = st, *, parts: bool = False) -> None:
    """Draw what is wrong with a field, beneath it; or also with its parts."""
    errors: dict[str, str] = st.session_state.get(form.ERRORS, {})
    for name, message in errors.items():
        if name == field or (parts and name.startswith(f"{field}/")):
            place.markdown(f":red[:small[{escape(message)}]]")

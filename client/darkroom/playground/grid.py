"""The X/Y grid: the form's image over the values of one or two settings, made as a batch."""

import base64
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from darkroom.playground import form, state, submission
from darkroom.playground.connection import connect, thumbnail
from darkroom.playground.formatting import count, escape
from darkroom.playground.state import errors_shown_here, errors_shown_on_top
from darkroom.types.batches import Batch

MAX_IMAGES = 36
_MAX_NAME = 200
_BATCH = "form-grid"
"""Key of the ID of the batch that is shown; a draft keeps it."""
_SHOWN = "form-grid-shown"
"""Key of its axes: for each its name, then its values."""
_NONE, _WORDS, _LORA = "none", "Words of the prompt", "LoRA: "
_AXES = ("x", "y")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # JSON has no such
        raise ValueError(text)
    return number


_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Seed": ("seed", int),
    "Steps": ("steps", int),
    "Guidance": ("guidance_scale", _number),
    "Scheduler": ("scheduler", str),
    "Strength": ("strength", _number),
    _WORDS: ("prompt", str),
}
"""Label → field of the API, and how a value is read."""
_REDRAW_SECONDS = 1.0


def show_form() -> None:
    """Draw the axes and the button."""
    settings = [_NONE, *_SETTINGS, *(f"{_LORA}{name}" for name in st.session_state[form.LORAS])]
    if form.initial_image() is None:
        settings.remove("Strength")
    for axis in _AXES:
        if st.session_state[f"form-grid-{axis}"] not in settings:
            st.session_state[f"form-grid-{axis}"] = _NONE
        left, right = st.columns([2, 3], wrap=False)
        chosen = left.selectbox(
            axis.upper(), settings, key=f"form-grid-{axis}", persist_state="session"
        )
        right.text_input(
            f"Values of {axis.upper()}",
            key=f"form-grid-{axis}-values",
            placeholder="hat, cap, crown" if chosen == _WORDS else "values, with commas",
            help="The first stands in the prompt; each replaces it." if chosen == _WORDS else None,
            disabled=chosen == _NONE,
            persist_state="session",
        )
    values, problem = _read()
    if problem:
        st.markdown(f":red[:small[{escape(problem)}]]")
    cells = len(values["x"]) * len(values["y"])
    st.button(
        f"Make {count(cells, 'image')}",
        icon=":material/grid_on:",
        key="grid-submit",
        disabled=bool(problem) or cells < 2,
        on_click=_submit,
        args=(values,),
    )


def _read() -> tuple[dict[str, list[Any]], str | None]:
    """The values by axis, [None] for one that is not used; and what is wrong with them."""
    values: dict[str, list[Any]] = {axis: [None] for axis in _AXES}
    names = [st.session_state[f"form-grid-{axis}"] for axis in _AXES]
    if names[0] == names[1] != _NONE:
        return values, "Choose two different settings."
    for axis, name in zip(_AXES, names, strict=True):
        texts = [each.strip() for each in st.session_state[f"form-grid-{axis}-values"].split(",")]
        read = _SETTINGS.get(name, ("", _number))[1]
        if name == _NONE or texts == [""]:
            continue
        if "" in texts:
            return values, f"{name}: a value is missing before or after a comma."
        try:
            values[axis] = [read(text) for text in texts]
        except ValueError:
            return values, f"{name}: write numbers, with commas between them."
        if name == _WORDS and texts[0] not in st.session_state[form.PROMPT]:
            return values, f"The prompt does not contain “{texts[0]}”."
    cells = len(values["x"]) * len(values["y"])
    return values, f"{cells} images are more than {MAX_IMAGES}." if cells > MAX_IMAGES else None


def _submit(values: Mapping[str, list[Any]]) -> None:
    st.session_state[form.ERRORS] = submission.problems()
    if st.session_state[form.ERRORS]:
        return
    names = {axis: st.session_state[f"form-grid-{axis}"] for axis in _AXES}
    with errors_shown_on_top():
        lines = _lines(values, names)
        axes = " × ".join(name for name in names.values() if name != _NONE)
        batch = connect().batches.submit(
            lines, session_id=state.session(), name=f"Grid: {axes}"[:_MAX_NAME]
        )
        st.session_state[_BATCH] = batch.id
        st.session_state[_SHOWN] = [[names[axis], *values[axis]] for axis in _AXES]


def _lines(values: Mapping[str, list[Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    body = {**submission.body(), "num_images": 1}
    # One for all: the settings make the difference.
    body.setdefault("seed", random.randrange(2**31))
    _, is_drawing, drawing = body.get("mask_image", "").partition("base64,")
    if is_drawing:  # lines have no room for it
        body["mask_image"] = connect().uploads.create(base64.b64decode(drawing)).id
    lines = []
    for row, y in enumerate(values["y"]):
        for column, x in enumerate(values["x"]):
            line = _with(body, names["x"], x, values["x"][0])
            line = _with(line, names["y"], y, values["y"][0])
            lines.append({**line, "custom_id": f"{row}-{column}"})
    return lines


def _with(body: Mapping[str, Any], name: str, value: Any, first: Any) -> dict[str, Any]:
    """The submission with one setting changed."""
    if value is None:
        return dict(body)
    if name.startswith(_LORA):
        lora = name.removeprefix(_LORA)
        scales = [{**one, "scale": value} if one["name"] == lora else one for one in body["loras"]]
        return {**body, "loras": scales}
    if name == _WORDS:
        return {**body, "prompt": body["prompt"].replace(first, value)}
    return {**body, _SETTINGS[name][0]: value}


def show() -> None:
    """Draw the grid that was made last, until it is dismissed."""
    batch_id = st.session_state.get(_BATCH)
    axes = st.session_state.get(_SHOWN)
    if not batch_id or not axes:
        return
    with errors_shown_here():
        batch = connect().batches.get(batch_id)
        st.fragment(_show_grid, run_every=None if batch.is_final else _REDRAW_SECONDS)(
            batch.id, axes, is_final=batch.is_final
        )


def _show_grid(batch_id: str, axes: list[list[Any]], *, is_final: bool) -> None:
    with errors_shown_here(), st.container(border=True, key="grid"):
        batch = connect().batches.get(batch_id)
        if batch.is_final and not is_final:
            st.rerun()
        _show_head(batch, axes)
        ended = connect().batches.results(batch_id, follow=False)
        images = {one.custom_id: one.images for one in ended}
        (_, *across), (_, *down) = axes
        with st.container(key="grid-cells"):
            for row, y in enumerate(down):
                cells = st.columns([0.6, *[1] * len(across)], wrap=False)
                cells[0].caption(escape("" if y is None else str(y)))
                for column, x in enumerate(across):
                    made = images.get(f"{row}-{column}")
                    label = " · ".join(str(each) for each in (x, y) if each is not None)
                    if made:
                        cells[column + 1].image(thumbnail(made[0].id), width="stretch", alt=label)
                    else:
                        cells[column + 1].html(
                            '<div class="placeholder" style="aspect-ratio: 1"></div>'
                        )
                    if row == len(down) - 1 and x is not None:
                        cells[column + 1].caption(escape(str(x)))


def _show_head(batch: Batch, axes: list[list[Any]]) -> None:
    names = [name for name, *_ in axes if name != _NONE]
    done = f"{batch.images.done} of {count(batch.images.total, 'image')}"
    with st.container(horizontal=True, vertical_alignment="center", wrap=False):
        st.caption(escape(f"{' × '.join(names)} · {batch.state} · {done}"), width="stretch")
        if st.button("Dismiss", key="grid-dismiss", type="tertiary", on_click=_dismiss):
            st.rerun()


def _dismiss() -> None:
    st.session_state[_BATCH] = ""

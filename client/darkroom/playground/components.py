"""The page's own three components: a brush for masks, a slider that compares two images, and what
a browser tab keeps over a reload.

Each is one file of JavaScript beside this one. Streamlit has neither, and the well-kept canvas
components belong to its first interface, in a frame, which our security policy forbids.
"""

import base64
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from darkroom.playground import filling, form, state
from darkroom.playground.connection import KEY, image_file

_KEEP = "keep"
_KNOWN = "keep-known"
"""Key of the session whose draft was asked for."""
_NEVER = "never"
_TYPED = (form.PROMPT, form.NEGATIVE, form.SEED, form.COUNT, form.WIDTH, form.HEIGHT, form.STEPS)
"""Fields that may hold what the server has not been told yet."""
_PREFIX = "form-"


@cache
def _script(name: str) -> str:
    return Path(__file__).with_name(f"{name}.js").read_text("utf-8")


def _mount(name: str, key: str, data: dict[str, Any], **changed: Any) -> None:
    component = st.components.v2.component(f"darkroom_{name}", js=_script(name))
    component(key=key, data=data, **changed)


def draw_mask(initial: form.InitialImage) -> None:
    """Draw the initial image with a brush; what is painted becomes the form's mask."""
    key = f"brush-{initial.id}"
    mask = form.drawn_mask()
    data = {
        "image": _data_url(initial.preview or b"", "image/webp"),
        "width": initial.width,
        "height": initial.height,
        "mask": mask.drawing if mask else None,
        "resets": st.session_state.get(form.MASK_RESETS, 0),
    }
    _mount("brush", key, data, on_mask_change=lambda: _take_mask(key))


def compare(left: state.Card, right: state.Card) -> None:
    """Draw two images, one over the other, with a slider between them."""
    data = {
        "images": [_data_url(image_file(one.id), one.content_type) for one in (left, right)],
        "names": [one.prompt for one in (left, right)],
        "width": left.width,
        "height": left.height,
    }
    _mount("compare", f"compare-{left.id}-{right.id}", data)


def _data_url(data: bytes, content_type: str) -> str:
    return f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}"


def _take_mask(key: str) -> None:
    drawing = st.session_state[key].get("mask")
    if drawing is None:
        st.session_state.pop(form.MASK, None)
        return
    values = st.session_state
    if form.drawn_mask() is None and values[form.STRENGTH] == form.DEFAULT_STRENGTH:
        values[form.STRENGTH] = 1.0  # the usual one of a masked part
    values[form.MASK] = form.Mask(drawing, drawing)


def keep(session_id: str | None, *, forget: bool = False) -> None:
    """Keep the form's draft, and the user's key, in the browser tab; bring them back at first.

    Args:
        session_id: the session whose draft it is; None: there is only a key to keep.
        forget: the key.
    """
    values = st.session_state
    data = {
        "session": session_id or "",
        "known": values.get(_KNOWN, _NEVER),
        "draft": _draft() if session_id and values.get(_KNOWN) == session_id else None,
        "typed": _TYPED,
        "key": values.get(KEY),
        "forget": forget,
    }
    with st.container(key="kept"):
        _mount("keep", _KEEP, data, on_stored_change=_restore)


def _draft() -> dict[str, Any]:
    simple = (str, int, float, bool, list, tuple, type(None))
    values = {str(name): value for name, value in st.session_state.items()}
    return {
        name: value
        for name, value in values.items()
        if name.startswith(_PREFIX) and isinstance(value, simple) and name != form.SHAPE
    } | {
        name: filling.to_draft(values[name]) for name in (form.INITIAL, form.MASK) if name in values
    }


def _restore() -> None:
    """Fill the form with the draft that the browser tab kept."""
    stored = st.session_state[_KEEP].get("stored")
    if not stored:
        return
    st.session_state[_KNOWN] = stored["session"]
    if stored["key"]:
        st.session_state.setdefault(KEY, stored["key"])
    # A copy: what is changed here would be news to Streamlit, which then calls this each time.
    draft = dict(stored["draft"] or {})
    if draft and stored["session"] == st.session_state.get(state.SESSION):
        filling.restore(draft, draft.pop("typed", {}))

"""Windows over the page: a picture's receipt, making it again, and asking before deleting it."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import streamlit as st

from darkroom.playground import notices, pictures, stars
from darkroom.playground.connection import connect
from darkroom.playground.words import escape
from darkroom.types.jobs import Reproduction

if TYPE_CHECKING:
    from darkroom.playground.cards import Picture

_OPEN = "dialog"
_REPRODUCTION = "reproduction"
_POLL_SECONDS = 0.5
_AT_ONCE = 16


def open_receipt(picture: "Picture") -> None:
    """Opens the window with the receipt; for callbacks, as are the others."""
    st.session_state[_OPEN] = (_receipt, picture)


def open_reproduce(picture: "Picture") -> None:
    """Begins to make the picture again and opens the window that waits for it."""
    images = connect().images
    st.session_state[_REPRODUCTION] = _threads().submit(images.reproduce, picture.id)
    st.session_state[_OPEN] = (_reproduce, picture)


def open_delete(picture: "Picture") -> None:
    """Opens the question whether to delete the picture."""
    st.session_state[_OPEN] = (_delete, picture)


def show() -> None:
    """Draws the open window, if there is one; once in each drawing of the page."""
    opened: tuple[Callable[[Picture], None], Picture] | None = st.session_state.get(_OPEN)
    if opened is not None:
        draw, picture = opened
        draw(picture)


def _close() -> None:
    st.session_state.pop(_OPEN, None)
    st.session_state.pop(_REPRODUCTION, None)


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    # A reproduction waits for a worker; the drawing of the page must not.
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reproduce")


@st.dialog("Receipt", width="medium", on_dismiss=_close)
def _receipt(picture: "Picture") -> None:
    with notices.in_plain_words():
        receipt = connect().images.receipt(picture.id)
        left, right = st.columns([1, 2])
        left.image(pictures.thumbnail(picture.id), width="stretch", alt=picture.prompt)
        with right:
            st.markdown(f"**{escape(receipt['prompt'])}**")
            if receipt.get("negative_prompt"):
                st.caption(f"not: {escape(receipt['negative_prompt'])}")
            st.table(_facts(receipt), border="horizontal")
        st.download_button(
            "Download receipt",
            json.dumps(receipt, indent=2),
            file_name=f"{picture.id}.json",
            mime="application/json",
            icon=":material/download:",
            on_click="ignore",
        )
        with st.expander("All of it, as JSON"):
            st.json(receipt)


def _facts(receipt: dict[str, Any]) -> dict[str, str]:
    model, scheduler, software = (
        receipt.get(part) or {} for part in ("model", "scheduler", "software")
    )
    facts = {
        "Seed": receipt.get("seed"),
        "Size": f"{receipt.get('width')} × {receipt.get('height')}",
        "Steps": receipt.get("steps"),
        "Guidance": receipt.get("guidance_scale"),
        "Scheduler": scheduler.get("name"),
        "Model": f"{model.get('name')} ({str(model.get('content_hash'))[:12]})",
        "Strength": receipt.get("strength"),
        "Resize": receipt.get("resize_mode"),
        "Device": receipt.get("device"),
        "Software": f"darkroom {software.get('darkroom')}, torch {software.get('torch')}",
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


@st.dialog("Reproduce", width="medium", on_dismiss=_close)
def _reproduce(picture: "Picture") -> None:
    running: Future[Reproduction] | None = st.session_state.get(_REPRODUCTION)
    if running is None:
        return
    waits = not running.done()
    st.fragment(_comparison, run_every=_POLL_SECONDS if waits else None)(picture, running)


def _comparison(picture: "Picture", running: "Future[Reproduction]") -> None:
    left, right = st.columns(2, wrap=False)
    with left:
        pictures.show(picture.id, picture.prompt)
        st.caption("On record")
    with notices.in_plain_words():
        if not running.done():
            right.info("Made again from its receipt …", icon=":material/hourglass_top:")
            return
        result = running.result()
        if result.image is not None:
            with right:
                pictures.show(result.image.id, "made again")
                st.caption("Made again")
        _verdict(result)


def _verdict(result: Reproduction) -> None:
    say = {"identical": st.success, "equivalent": st.info, "different": st.warning}
    if result.verdict is None:
        st.info("It still waits for a worker. Press Reproduce again in a while.")
        return
    difference = result.max_pixel_difference
    largest = f" The largest difference of a pixel is {difference} of 255." if difference else ""
    say[result.verdict](f"**{result.verdict.capitalize()}.** {result.reason}{largest}")


@st.dialog("Delete this picture?", on_dismiss=_close)
def _delete(picture: "Picture") -> None:
    left, right = st.columns([1, 2])
    left.image(pictures.thumbnail(picture.id), width="stretch", alt=picture.prompt)
    right.write("It cannot be brought back. Its seed and settings go with it.")
    if right.button("Delete for good", type="primary", icon=":material/delete:"):
        stars.delete(picture)
        _close()
        st.rerun()

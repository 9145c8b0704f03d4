"""Dialogs about images: one large, two compared, reproducing one, upscaling one."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import streamlit as st

from darkroom.playground import components, snippets, submission
from darkroom.playground.connection import connect, show_image, thumbnail
from darkroom.playground.formatting import escape
from darkroom.playground.state import Card, errors_shown_here, open_tab, show_job
from darkroom.types.jobs import Reproduction

_OPEN = "dialog"
_REPRODUCTION = "reproduction"
_BESIDE = "beside"
_SIDE_BY_SIDE, _SLIDER = "Side by side", "Slider"
_POLL_SECONDS = 0.5
_MAX_THREADS = 16
_METHODS: dict[Literal["lanczos", "latent"], str] = {
    "lanczos": "Lanczos: the same image, at once",
    "latent": "Latent: paint new detail, with the image's own prompt",
}
"""Value → label."""


def open_image(card: Card, beside: Sequence[Card] = ()) -> None:
    """Show the image large, with the others before and after it; for callbacks, as are the rest."""
    st.session_state[_BESIDE] = list(beside)
    st.session_state[_OPEN] = (_image, card)


def open_reproduce(card: Card) -> None:
    """Start to reproduce the image, and open the dialog that waits for it."""
    images = connect().images
    st.session_state[_REPRODUCTION] = _threads().submit(images.reproduce, card.id)
    st.session_state[_OPEN] = (_reproduce, card)


def open_upscale(card: Card) -> None:
    """Ask how to upscale the image."""
    st.session_state[_OPEN] = (_upscale, card)


def open_comparison(card: Card, other: Card) -> None:
    """Show two images side by side, or one over the other."""
    st.session_state[_BESIDE] = [card, other]
    st.session_state[_OPEN] = (_compare, card)


def show() -> None:
    """Draw the open dialog, if any; called once in each drawing of the page."""
    opened: tuple[Callable[[Card], None], Card] | None = st.session_state.get(_OPEN)
    if opened is not None:
        draw, card = opened
        draw(card)


def _close() -> None:
    st.session_state.pop(_OPEN, None)
    st.session_state.pop(_REPRODUCTION, None)


@st.cache_resource(show_spinner=False)
def _threads() -> ThreadPoolExecutor:
    # A reproduction waits for a worker; drawing the page must not.
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="reproduce")


@st.dialog("Image", width="large", on_dismiss=_close)
def _image(_: Card) -> None:
    # The dialog is redrawn alone, and the arrows change which image it shows.
    card: Card = st.session_state[_OPEN][1]
    beside: list[Card] = st.session_state[_BESIDE]
    left, right = st.columns([3, 2])
    with left, st.container(key="enlarged"), errors_shown_here():
        show_image(card.id, card.prompt)
        if len(beside) > 1:
            _show_arrows(card, beside)
    with right, errors_shown_here():
        receipt = connect().images.receipt(card.id)
        st.caption("Prompt")
        st.code(receipt["prompt"], language=None, wrap_lines=True)
        if receipt.get("negative_prompt"):
            st.caption(f"avoid: {escape(receipt['negative_prompt'])}")
        st.caption("Seed")
        st.code(str(card.seed), language=None)
        facts = _facts(receipt)
        del facts["Seed"]
        st.table(facts, border="horizontal")
        _show_requests(card)
        with st.expander("Receipt", icon=":material/receipt_long:"):
            st.json(receipt)
            st.download_button(
                "Download receipt",
                json.dumps(receipt, indent=2),
                file_name=f"{card.id}.json",
                mime="application/json",
                icon=":material/download:",
                on_click="ignore",
            )


def _show_arrows(card: Card, beside: list[Card]) -> None:
    place = beside.index(card)
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center"):
        for label, icon, key, step in (
            ("Previous", ":material/arrow_back:", "Left", -1),
            ("Next", ":material/arrow_forward:", "Right", 1),
        ):
            target = place + step
            st.button(
                label,
                icon=icon,
                shortcut=key,
                disabled=not 0 <= target < len(beside),
                key=f"image-{label.lower()}",
                type="tertiary",
                on_click=_turn_to,
                args=(beside[target % len(beside)],),
            )
        st.caption(f"{place + 1} of {len(beside)}", width="content")


def _turn_to(card: Card) -> None:
    st.session_state[_OPEN] = (_image, card)


def _show_requests(card: Card) -> None:
    """Draw how to make the image without this page, ready to be copied."""
    fields = submission.settings_of(connect().jobs.get(card.job_id))
    del fields["seeds"]
    fields |= {"seed": card.seed, "num_images": 1}
    with st.expander("Make it elsewhere", icon=":material/terminal:"):
        for title, text, language in (
            ("Python", snippets.as_python(fields), "python"),
            ("Command line", snippets.as_command(fields), "bash"),
            ("curl", snippets.as_curl(fields, connect().url), "bash"),
        ):
            st.caption(title)
            st.code(text, language=language, wrap_lines=True)


@st.dialog("Compare", width="large", on_dismiss=_close)
def _compare(_: Card) -> None:
    left, right = cards = st.session_state[_BESIDE]
    how = st.segmented_control(
        "How to compare",
        [_SIDE_BY_SIDE, _SLIDER],
        default=_SIDE_BY_SIDE,
        required=True,
        key="compare-how",
        label_visibility="collapsed",
    )
    with errors_shown_here():
        if how == _SLIDER:
            components.compare(left, right)
        facts = [_facts(connect().images.receipt(card.id)) for card in cards]
        for place, (column, card) in enumerate(zip(st.columns(2, wrap=False), cards, strict=True)):
            with column:
                if how == _SIDE_BY_SIDE:
                    show_image(card.id, card.prompt)
                st.caption(escape(card.prompt))
                own, other = facts[place], facts[1 - place]
                differing = {name: own[name] for name in own if own[name] != other.get(name)}
                st.table(differing or {"Settings": "the same"}, border="horizontal")


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
    return {name: escape(str(value)) for name, value in facts.items() if value is not None}


@st.dialog("Reproduce", width="medium", on_dismiss=_close)
def _reproduce(card: Card) -> None:
    running: Future[Reproduction] | None = st.session_state.get(_REPRODUCTION)
    if running is None:
        return
    waits = not running.done()
    st.fragment(_comparison, run_every=_POLL_SECONDS if waits else None)(card, running)


def _comparison(card: Card, running: "Future[Reproduction]") -> None:
    left, right = st.columns(2, wrap=False)
    with left:
        show_image(card.id, card.prompt)
        st.caption("Original")
    with errors_shown_here():
        if not running.done():
            right.info("Making it again from its receipt …", icon=":material/hourglass_top:")
            return
        result = running.result()
        if result.image is not None:
            with right:
                show_image(result.image.id, "reproduced")
                st.caption("Reproduced")
        _verdict(result)


def _verdict(result: Reproduction) -> None:
    say = {"identical": st.success, "equivalent": st.info, "different": st.warning}
    if result.verdict is None:
        st.info("It is still waiting for a worker. Press Reproduce again in a while.")
        return
    difference = result.max_pixel_difference
    largest = (
        f" The largest difference in any channel is {difference} of 255." if difference else ""
    )
    say[result.verdict](
        f"**{result.verdict.capitalize()}.** {escape(result.reason or '')}{largest}"
    )


@st.dialog("Upscale", on_dismiss=_close)
def _upscale(card: Card) -> None:
    left, right = st.columns([1, 2])
    left.image(thumbnail(card.id), width="stretch", alt=card.prompt)
    with right:
        scale = st.select_slider("Scale", [1.5, 2.0, 3.0, 4.0], 2.0, key="upscale-scale")
        method = st.radio(
            "Method",
            list(_METHODS),
            format_func=_METHODS.__getitem__,
            key="upscale-method",
        )
        st.caption(f"{round(card.width * scale)} × {round(card.height * scale)} pixels")
        if st.button("Upscale", type="primary", key="upscale-submit"):
            with errors_shown_here():
                handle = connect().images.upscale(card.id, scale, method)
                show_job(handle.job)
                _close()
                open_tab("Generate")
                st.rerun()

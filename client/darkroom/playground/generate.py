"""The Generate tab: the form, suggestions of prompts, and the session's jobs beside them."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from darkroom import Job
from darkroom.playground import fields, filling, form, grid, jobs, state, submission
from darkroom.playground.connection import connect, thumbnail
from darkroom.playground.formatting import escape, short, when
from darkroom.playground.state import (
    IMAGE_TYPES,
    errors_shown_here,
    errors_shown_on_top,
    notify,
    show_uploader,
    take_upload,
)

_RECEIPT_FILE = "receipt-file"
_SUGGESTIONS = "suggestions"
_TYPED = "suggestions-typed"
_SUGGESTED, _USED = "Suggestions", "Your latest"
_MAX_SUGGESTIONS = 8
_MAX_HISTORY = 100


def show(session_id: str) -> None:
    """Draw the tab."""
    form.prepare()
    is_first_look = not state.is_known(session_id)
    results = state.jobs(session_id)
    if is_first_look and results and not st.session_state[form.PROMPT]:
        _fill_from(results[0])
    with st.container(key="generate-grid"):
        with st.container(key="generate-ask"):
            fields.show_text()
            _show_buttons(session_id)
        with st.container(key="generate-set"):
            fields.show_seed_count_and_shape()
            fields.show_initial_image()
            fields.show_loras()
            fields.show_controls()
            with st.expander("Model, size and steps", icon=":material/tune:"):
                fields.show_settings()
            with st.expander("Grid over two settings", icon=":material/grid_on:"):
                grid.show_form()
            with st.expander("Settings from an image", icon=":material/upload_file:"):
                show_uploader(
                    "Drop an image made by Darkroom",
                    _RECEIPT_FILE,
                    IMAGE_TYPES,
                    max_megabytes=10,
                    on_change=_read_receipt,
                )
        with st.container(key="generate-newest"):
            jobs.show_queue(st.session_state[form.MODEL], results)
            grid.show()
            jobs.show_newest(results)
        with st.container(key="generate-earlier"):
            jobs.show_earlier(results)


def _fill_from(job: Job) -> None:
    """Start with the settings of the session's newest job."""
    # What it started from and followed was not chosen on this page.
    filling.fill(submission.settings_of(job) | {"controls": []}, job.kind)
    st.session_state[form.SEED_MODE] = form.RANDOM
    form.clear_initial_image()


def _show_buttons(session_id: str) -> None:
    with st.container(horizontal=True):
        st.button(
            "Generate",
            type="primary",
            icon=":material/auto_awesome:",
            key="generate",
            shortcut="Ctrl+Enter",
            on_click=_submit,
        )
        with st.popover(
            "Prompts",
            icon=":material/lightbulb:",
            type="tertiary",
            on_change=_open_suggestions,
            key=_SUGGESTIONS,
            help="Prompts similar to yours, and earlier ones that worked well.",
        ) as suggestions:
            if suggestions.open:
                st.fragment(_show_suggestions)(session_id)
    _show_chips()


def _show_chips() -> None:
    """Draw what an image will start from and be steered by; a click removes it."""
    chips: list[tuple[str, str, Callable[..., None], tuple[Any, ...]]] = []
    initial = form.initial_image()
    if initial is not None:
        label = f"Initial image: {escape(short(initial.label, 24))}"
        chips.append(("initial", label, form.clear_initial_image, ()))
    if form.drawn_mask() is not None:
        chips.append(("mask", "Mask", form.clear_mask, ()))
    chips += [
        (f"lora-{name}", f"LoRA: {escape(name)}", form.remove_lora, (name,))
        for name in st.session_state[form.LORAS]
    ]
    chips += [
        (
            f"control-{each['slot']}",
            f"ControlNet: {escape(short(each['label'], 24))}",
            form.remove_control,
            (each,),
        )
        for each in st.session_state[form.CONTROLS]
    ]
    if not chips:
        return
    with st.container(horizontal=True, gap="xsmall", key="chips"):
        for key, label, remove, arguments in chips:
            st.button(
                label,
                key=f"chip-{key}",
                icon=":material/close:",
                icon_position="right",
                help="Remove",
                on_click=remove,
                args=arguments,
            )


def _submit() -> None:
    problems = submission.problems()
    st.session_state[form.ERRORS] = problems
    if not problems:
        submission.submit(submission.body())


def _read_receipt() -> None:
    file = take_upload(_RECEIPT_FILE)
    if file is None:
        return
    with errors_shown_on_top():
        results = connect().images.inspect(file.getvalue())
        notes = [*filling.fill(results.job, results.receipt["kind"]), *results.notes]
        notify("The form now has this image's settings and seed.", "success")
        for note in notes:
            notify(escape(note), "warning")


def _open_suggestions() -> None:
    # Start from what the form says so far.
    st.session_state[_TYPED] = st.session_state[form.PROMPT]


def _show_suggestions(session_id: str) -> None:
    typed = st.text_input(
        "What do you have in mind?",
        key=_TYPED,
        live="300ms",
        placeholder="Type a few words, or leave it empty",
    )
    source = st.segmented_control(
        "Prompts",
        [_SUGGESTED, _USED],
        default=_SUGGESTED,
        required=True,
        key="suggestions-source",
        label_visibility="collapsed",
    )
    with errors_shown_here(), st.container(key="suggestions-list", gap="small"):
        results = _suggest(typed, session_id) if source == _SUGGESTED else _used(typed)
        for number, (prompt, reason, image_id) in enumerate(results):
            with st.container(horizontal=True, vertical_alignment="center", wrap=False):
                if image_id is not None:
                    st.image(thumbnail(image_id), width=56, alt="")
                with st.container(gap="xxsmall"):
                    if st.button(
                        escape(short(prompt, 120)),
                        key=f"suggestion-{number}",
                        on_click=_use_suggestion,
                        args=(prompt,),
                        type="tertiary",
                    ):
                        st.rerun()
                    st.caption(escape(reason))
        if not results:
            st.caption("There are no prompts for these words.")


def _suggest(typed: str, session_id: str) -> list[tuple[str, str, str | None]]:
    """(prompt, reason, image) of similar and successful prompts."""
    found = connect().prompts.recommend(
        typed or None, session_id=session_id, limit=_MAX_SUGGESTIONS
    )
    return [(one.prompt, one.reason, one.image.id if one.image else None) for one in found]


def _used(typed: str) -> list[tuple[str, str, str | None]]:
    """(prompt, time, image) of the latest prompts that contain these words."""
    found: dict[str, tuple[str, str, str | None]] = {}
    for job in connect().jobs.list(page_size=_MAX_HISTORY).page().data:
        if all(word in job.prompt.casefold() for word in typed.casefold().split()):
            image = job.images[0].id if job.images else None
            found.setdefault(job.prompt, (job.prompt, when(job.created_at), image))
    return list(found.values())[:_MAX_SUGGESTIONS]


def _use_suggestion(prompt: str) -> None:
    st.session_state[form.PROMPT] = prompt
    st.session_state[_SUGGESTIONS] = False

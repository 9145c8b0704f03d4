"""The tab Generate: the form, and beside it the jobs with their results."""

import streamlit as st

from darkroom.playground import dropzone, form, ideas, jobs, notices, running, words
from darkroom.playground.connection import connect

_RECEIPT_FILE = "receipt-file"
_INITIAL_FILE = "initial-file"
_PICTURES = ["png", "jpg", "jpeg", "webp"]


def show(session_id: str) -> None:
    """Draws the tab."""
    form.prepare()
    # Before the form is drawn: the first look at a session fills it from the newest job.
    found = jobs.shown(session_id)
    with st.container(key="generate-grid"):
        with st.container(key="generate-ask"):
            form.show_text()
            _show_buttons(session_id)
        with st.container(key="generate-set"):
            form.show_seed_and_count()
            _show_initial()
            with st.expander("Model, size, steps, guidance", icon=":material/tune:"):
                form.show_settings()
            _show_receipt_file()
        with st.container(key="generate-newest"):
            running.show_newest(found)
        with st.container(key="generate-earlier"):
            running.show_earlier(found)


def _show_buttons(session_id: str) -> None:
    with st.container(horizontal=True):
        st.button(
            "Generate",
            type="primary",
            icon=":material/auto_awesome:",
            key="generate",
            on_click=_submit,
        )
        ideas.show(session_id)
    initial: form.Initial | None = st.session_state.get(form.INITIAL)
    if initial is not None:
        st.caption(f"Starts from the initial image {words.escape(initial.label)}.")


def _submit() -> None:
    if not st.session_state[form.PROMPT].strip():
        notices.keep("**The prompt is empty.** Say in a few words what the picture shall show.")
        return
    wrong = form.problems()
    if wrong:
        notices.keep(f"These settings cannot be used. {' '.join(wrong)}")
        return
    jobs.submit(form.body())


def _show_receipt_file() -> None:
    dropzone.show(
        "Drop a picture made by Darkroom to take over its settings",
        _RECEIPT_FILE,
        _PICTURES,
        most_megabytes=10,
        on_change=_read_receipt,
    )


def _read_receipt() -> None:
    file = dropzone.take(_RECEIPT_FILE)
    if file is None:
        return
    with notices.kept_for_the_top():
        read = connect().images.inspect(file.getvalue())
        notes = [*form.fill(read.job), *read.notes]
        notices.keep("The form has the settings and the seed of this picture.", kind="good")
        for note in notes:
            notices.keep(note, kind="note")


def _show_initial() -> None:
    initial: form.Initial | None = st.session_state.get(form.INITIAL)
    label = "Initial image" if initial is None else f"Initial image: {words.escape(initial.label)}"
    with st.expander(label, icon=":material/image:", expanded=initial is not None):
        if initial is None:
            dropzone.show(
                "Start from a picture of yours",
                _INITIAL_FILE,
                _PICTURES,
                most_megabytes=10,
                on_change=_take_initial,
                help="Any earlier picture can be one too: press “Use as initial image” below it.",
            )
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            if initial.preview is not None:
                st.image(initial.preview, width=96, alt="initial image")
            st.button(
                "Without it",
                icon=":material/close:",
                key="initial-away",
                on_click=form.forget_initial,
            )
        st.slider(
            "Strength",
            0.05,
            1.0,
            step=0.05,
            key=form.STRENGTH,
            on_change="ignore",
            persist_state="session",
            help="How far the result may leave the initial image: little at 0.2, nearly all at 1.",
        )
        st.selectbox(
            "Size",
            list(form.RESIZE_MODES),
            format_func=lambda mode: form.RESIZE_MODES[mode],
            key=form.RESIZE,
            on_change="ignore",
            persist_state="session",
            help="With its own shape the result gets about as many pixels as the model's default.",
        )


def _take_initial() -> None:
    file = dropzone.take(_INITIAL_FILE)
    if file is None:
        return
    with notices.kept_for_the_top():
        data: bytes = file.getvalue()
        kept = connect().uploads.create(data)
        st.session_state[form.INITIAL] = form.Initial(kept.id, file.name, data)
        st.session_state[form.RESIZE] = form.KEEP_SHAPE

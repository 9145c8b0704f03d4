"""The session id: at the top of the page and in its URL, so that a link brings it back."""

import random
import re

import streamlit as st

from darkroom.playground import form, notices, words
from darkroom.playground.connection import connect

SESSION = "session"
"""Key of the session's field in the state and in the URL."""
TAB = "tab"
"""Key of the open tab in the state and in the URL."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIRST = ("amber", "bright", "calm", "early", "green", "late", "quiet", "silver", "warm", "wide")
_SECOND = ("field", "frame", "grain", "lens", "light", "lamp", "mirror", "plate", "print", "tray")
_RECENT = 12
_LATEST_JOBS = 6


def new_name() -> str:
    """A name that reads well in a URL; drawn from a million, since sessions share a tenant."""
    return f"{random.choice(_FIRST)}-{random.choice(_SECOND)}-{random.randrange(10_000):04d}"


def current() -> str:
    """The session that the page shows."""
    name: str = st.session_state[SESSION]
    return name


def open_tab(name: str) -> None:
    """Turns to another tab; for callbacks."""
    st.session_state[TAB] = name


def show_header() -> str | None:
    """Draws the title and the session's field; returns the session, or None if it is no name."""
    _name_it()
    with st.container(horizontal=True, vertical_alignment="bottom", key="header"):
        with st.container(key="title", width="content"):
            st.markdown("### Darkroom")
        name = st.text_input(
            "Session",
            key=SESSION,
            help="Your pictures are kept under this name. The address of this page holds it: "
            "keep the link, and you come back to them.",
            width=225,
        )
        others = st.popover(
            "Sessions", icon=":material/folder_open:", key="sessions", on_change="rerun"
        )
        if others.open:
            with others, notices.in_plain_words():
                _show_others(name)
    if not _NAME.fullmatch(name):
        st.error(
            "**This cannot be the name of a session.** Take 1 to 64 letters, digits, dots, "
            "hyphens and underscores, with a letter or a digit first.",
            icon=":material/error:",
        )
        return None
    return name


def _name_it() -> None:
    """Takes the name from the address where the page is new, and keeps it there."""
    state = st.session_state
    if SESSION not in state:
        state[SESSION] = st.query_params.get(SESSION)
    state[SESSION] = state[SESSION] or new_name()  # also where the field was emptied
    if st.query_params.get(SESSION) != state[SESSION]:
        st.query_params[SESSION] = state[SESSION]


def _show_others(current: str) -> None:
    st.button("New session", icon=":material/add:", on_click=_switch, args=(new_name(),))
    recent = connect().sessions.list(page_size=_RECENT).take(_RECENT)
    for known in recent:
        st.button(
            f"{words.escape(known.id)} · {words.count(known.images, 'picture')}",
            key=f"session-{known.id}",
            type="tertiary",
            disabled=known.id == current,
            on_click=_switch,
            args=(known.id,),
        )
    _show_latest_jobs(current)


def _show_latest_jobs(current: str) -> None:
    """The key's jobs wherever they were submitted: the command line has a session of its own."""
    latest = connect().jobs.list(page_size=_LATEST_JOBS).take(_LATEST_JOBS)
    if latest:
        st.caption("Latest jobs, from here, the command line and elsewhere")
    for job in latest:
        session_id = job.session_id
        st.button(
            f"{words.escape(words.short(job.prompt, 40))} · {job.state} · "
            f"{words.escape(session_id)} · {words.when(job.created_at)}",
            key=f"latest-{job.id}",
            type="tertiary",
            disabled=session_id == current,
            on_click=_switch,
            args=(session_id,),
        )


def _switch(name: str) -> None:
    st.session_state[SESSION] = name
    form.forget_initial()
    st.session_state["sessions"] = False

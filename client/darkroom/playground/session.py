"""The session id: at the top of the page and in its URL, so that a link brings it back."""

import random
import re

import streamlit as st

from darkroom.playground import notices
from darkroom.playground.connection import connect

SESSION = "session"
"""Key of the session's field in the state and in the URL."""
TAB = "tab"
"""Key of the open tab in the state and in the URL."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIRST = ("amber", "bright", "calm", "early", "green", "late", "quiet", "silver", "warm", "wide")
_SECOND = ("field", "frame", "grain", "lens", "light", "lamp", "mirror", "plate", "print", "tray")
_RECENT = 12


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
    if not st.session_state.get(SESSION) and not st.query_params.get(SESSION):
        st.session_state[SESSION] = new_name()
    with st.container(horizontal=True, vertical_alignment="bottom", key="header"):
        st.markdown("### Darkroom", width="content")
        name = st.text_input(
            "Session",
            key=SESSION,
            bind="query-params",
            help="Your pictures are kept under this name. The address of this page holds it: "
            "keep the link, and you come back to them.",
            width=225,
        )
        with st.popover("Sessions", icon=":material/folder_open:"), notices.in_plain_words():
            _show_others(name)
    if not _NAME.fullmatch(name):
        st.error(
            "**This cannot be the name of a session.** Take 1 to 64 letters, digits, dots, "
            "hyphens and underscores, with a letter or a digit first.",
            icon=":material/error:",
        )
        return None
    return name


def _show_others(current: str) -> None:
    st.button("New session", icon=":material/add:", on_click=_switch, args=(new_name(),))
    recent = connect().sessions.list(page_size=_RECENT).take(_RECENT)
    for known in recent:
        st.button(
            f"{known.id} · {known.images} pictures",
            key=f"session-{known.id}",
            type="tertiary",
            disabled=known.id == current,
            on_click=_switch,
            args=(known.id,),
        )


def _switch(name: str) -> None:
    st.session_state[SESSION] = name

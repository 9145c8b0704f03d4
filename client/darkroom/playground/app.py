"""The page: the session at the top, and the four tabs. Streamlit runs this file on every change."""

import random
import re
from pathlib import Path

import streamlit as st

from darkroom.errors import AuthenticationError, ConfigurationError, DarkroomError
from darkroom.playground import (
    batches,
    components,
    dialogs,
    form,
    gallery,
    generate,
    search,
    state,
)
from darkroom.playground.connection import KEY, asks_for_key, connect
from darkroom.playground.formatting import count, escape, short, when
from darkroom.playground.state import SESSION, TAB, errors_shown_here

# A file of our own: the browser would fetch Streamlit's material icons from another site.
ICON = Path(__file__).with_name("icon.png")
STYLES = Path(__file__).with_name("styles.css")
TABS = {
    "Generate": generate.show,
    "Search": search.show,
    "History": gallery.show_history,
    "Batches": batches.show,
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIRST = ("amber", "bright", "calm", "early", "green", "late", "quiet", "silver", "warm", "wide")
_SECOND = ("field", "frame", "grain", "lens", "light", "lamp", "mirror", "plate", "print", "tray")
_ENTERED, _FORGET = "entered-key", "forget-key"
_RECENT_SESSIONS = 12
_LATEST_JOBS = 6


def main() -> None:
    """Draw the page; only the open tab does any work."""
    st.set_page_config(page_title="Darkroom", page_icon=ICON, layout="wide")
    st.html(STYLES)
    if asks_for_key() and not st.session_state.get(KEY):
        _show_sign_in()
        return
    session_id = _show_header()
    if session_id is None:
        return
    state.show_notices()
    state.show_undo()
    components.keep(session_id)
    tabs = st.tabs(list(TABS), key=TAB, bind="query-params")
    for tab, show in zip(tabs, TABS.values(), strict=True):
        if tab.open:
            with tab, errors_shown_here():
                show(session_id)
        elif show is search.show:
            search.forget()
    with errors_shown_here():
        dialogs.show()


def _show_sign_in() -> None:
    """Ask for an API key; the playground lends none here."""
    components.keep(None, forget=st.session_state.get(_FORGET, False))
    state.show_notices()
    st.markdown("### Darkroom")
    with st.form("sign-in", width=480):
        st.text_input("API key", key=_ENTERED, type="password", placeholder="drk_…")
        st.caption("Kept for this browser tab only. Your administrator issues keys.")
        st.form_submit_button("Open", type="primary", on_click=_sign_in)


def _sign_in() -> None:
    values = st.session_state
    values[KEY] = values[_ENTERED].strip()
    with state.errors_shown_on_top():
        try:
            connect().models.list().page()
            values[_FORGET] = False
        except (DarkroomError, ValueError) as error:
            del values[KEY]
            if not isinstance(error, ValueError | AuthenticationError | ConfigurationError):
                raise
            state.notify("**This key is not valid.** Copy it whole; it starts with `drk_`.")


def _sign_out() -> None:
    """Forget the key and what was seen with it."""
    for name in list(st.session_state):
        del st.session_state[name]
    st.session_state[_FORGET] = True


def _show_header() -> str | None:
    """Draw the title and the session's field; return the session, or None if its name is wrong."""
    _restore_session()
    with st.container(horizontal=True, vertical_alignment="center", key="header"):
        with st.container(key="title", width="content"):
            st.markdown("### Darkroom")
        name = st.text_input(
            "Session",
            key=SESSION,
            label_visibility="collapsed",
            width=225,
        )
        others = st.popover(
            "Sessions",
            icon=":material/folder_open:",
            type="tertiary",
            key="sessions",
            on_change="rerun",
            help="Your images are kept under this name. It is part of this page's address: "
            "bookmark the page to return to them.",
        )
        if asks_for_key():
            st.button("Sign out", icon=":material/logout:", type="tertiary", on_click=_sign_out)
        if others.open:
            with others, errors_shown_here():
                _show_other_sessions(name)
    if not _NAME.fullmatch(name):
        st.error(
            "**This is not a valid session name.** Use 1 to 64 letters, digits, dots, hyphens and "
            "underscores, starting with a letter or a digit.",
            icon=":material/error:",
        )
        return None
    return name


def _restore_session() -> None:
    """Take the session from the address of a new page, or invent one; keep it in the address."""
    values = st.session_state
    if SESSION not in values:
        values[SESSION] = st.query_params.get(SESSION)
    values[SESSION] = values[SESSION] or _new_name()  # also if the field was emptied
    if st.query_params.get(SESSION) != values[SESSION]:
        st.query_params[SESSION] = values[SESSION]


def _new_name() -> str:
    """A readable name, one of a million, since a tenant's users share its sessions."""
    return f"{random.choice(_FIRST)}-{random.choice(_SECOND)}-{random.randrange(10_000):04d}"


def _show_other_sessions(current: str) -> None:
    st.button("New session", icon=":material/add:", on_click=_switch_to, args=(_new_name(),))
    for known in connect().sessions.list(page_size=_RECENT_SESSIONS).take(_RECENT_SESSIONS):
        _show_link(
            f"session-{known.id}",
            f"{escape(known.id)} · {count(known.images, 'image')}",
            known.id,
            current,
        )
    # The key's jobs, wherever they were submitted: the command line has a session of its own.
    latest = connect().jobs.list(page_size=_LATEST_JOBS).take(_LATEST_JOBS)
    if latest:
        st.caption("Latest jobs, from here, the command line and elsewhere")
    for job in latest:
        _show_link(
            f"latest-{job.id}",
            f"{escape(short(job.prompt, 40))} · {job.state} · "
            f"{escape(job.session_id)} · {when(job.created_at)}",
            job.session_id,
            current,
        )


def _show_link(key: str, label: str, session_id: str, current: str) -> None:
    st.button(
        label,
        key=key,
        type="tertiary",
        disabled=session_id == current,
        on_click=_switch_to,
        args=(session_id,),
    )


def _switch_to(name: str) -> None:
    st.session_state[SESSION] = name
    form.clear_initial_image()
    st.session_state[form.CONTROLS] = []
    st.session_state["sessions"] = False


main()

"""The page: the session at the top, and the four tabs. Streamlit runs this file on every change."""

from pathlib import Path

import streamlit as st

from darkroom.playground import batches, dialogs, generate, history, looks, notices, search, session

# A file of our own: Streamlit's material icons would have the browser fetch it from outside.
ICON = Path(__file__).with_name("icon.png")
TABS = {
    "Generate": generate.show,
    "Search": search.show,
    "History": history.show,
    "Batches": batches.show,
}


def main() -> None:
    """Draws the page; only the open tab does any work."""
    st.set_page_config(page_title="Darkroom", page_icon=ICON, layout="wide")
    looks.apply()
    session_id = session.show_header()
    if session_id is None:
        return
    notices.show()
    tabs = st.tabs(list(TABS), key=session.TAB, bind="query-params")
    for tab, show in zip(tabs, TABS.values(), strict=True):
        if tab.open:
            with tab, notices.in_plain_words():
                show(session_id)
    with notices.in_plain_words():
        dialogs.show()


main()

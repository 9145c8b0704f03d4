"""The tab History: the session's pictures, newest first, or those that fit a query."""

import streamlit as st

import darkroom
from darkroom.playground import actions, notices, words
from darkroom.playground.cards import Picture, show_small
from darkroom.playground.connection import connect
from darkroom.types.gallery import HistoryImage

_QUERY = "history-query"
_WANTED = "history-wanted"
_PAGE = 24


def show(session_id: str) -> None:
    """Draws the tab."""
    query = st.text_input(
        "Search in this session",
        key=_QUERY,
        type="search",
        placeholder="Search in this session",
        label_visibility="collapsed",
        on_change=_from_the_start,
        persist_state="session",
    )
    with notices.in_plain_words():
        found = _find(session_id, query.strip())
        wanted = st.session_state.get(_WANTED, _PAGE)
        if not found:
            _show_nothing(query)
            return
        shown = [Picture.of(image, _note(image)) for image in found[:wanted]]
        show_small(shown, actions.OF_HISTORY)
        if len(found) > wanted:
            st.button("Show more", key="history-more", on_click=_more)


def _find(session_id: str, query: str) -> list[HistoryImage]:
    wanted = st.session_state.get(_WANTED, _PAGE) + 1
    try:
        listed = connect().sessions.images(session_id, q=query or None, page_size=_PAGE)
        return listed.take(wanted)
    except darkroom.errors.NotFound:
        return []  # a session is made by its first job


def _show_nothing(query: str) -> None:
    if query:
        st.info("No picture of this session fits these words.", icon=":material/search_off:")
        return
    st.info(
        "This session has no pictures yet. What you generate in it is kept here, and the address "
        "of this page brings you back.",
        icon=":material/history:",
    )


def _note(image: HistoryImage) -> str:
    if image.score is not None:
        return f"score {image.score:.2f}"
    return words.when(image.created_at) if image.created_at else ""


def _from_the_start() -> None:
    st.session_state[_WANTED] = _PAGE


def _more() -> None:
    st.session_state[_WANTED] = st.session_state.get(_WANTED, _PAGE) + _PAGE

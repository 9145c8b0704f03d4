"""Tells errors in plain words with what to do, now or at the top of the next drawing."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import streamlit as st

import darkroom
from darkroom.playground.words import explain

_KEPT = "notices"


@contextmanager
def in_plain_words() -> Iterator[None]:
    """Shows an error of the client in place of what could not be drawn."""
    try:
        yield
    except darkroom.DarkroomError as error:
        st.error(explain(error), icon=":material/error:")


@contextmanager
def kept_for_the_top() -> Iterator[None]:
    """For callbacks, which cannot draw: the error is shown at the top of the page they lead to."""
    try:
        yield
    except darkroom.DarkroomError as error:
        keep(explain(error))


def keep(words: str, kind: Literal["error", "note", "good"] = "error") -> None:
    """Says something at the top of the next drawing; good news pass by as a toast."""
    st.session_state.setdefault(_KEPT, []).append((words, kind))


def show() -> None:
    """Shows what was kept, once."""
    for words, kind in st.session_state.pop(_KEPT, []):
        if kind == "good":
            st.toast(words, icon=":material/check:")
        elif kind == "note":
            st.warning(words, icon=":material/info:")
        else:
            st.error(words, icon=":material/error:")

"""Prompts worth trying, found while one types."""

import streamlit as st

from darkroom.playground import form, notices, pictures, words
from darkroom.playground.connection import connect

_TYPED = "ideas-typed"
_MOST = 8


def show(session_id: str) -> None:
    """Draws the button that opens the ideas."""
    with st.popover(
        "Ideas",
        icon=":material/lightbulb:",
        on_change=_begin,
        key="ideas",
        help="Prompts near to yours, and what went well before.",
    ) as opened:
        if opened.open:
            st.fragment(_show)(session_id)


def _begin() -> None:
    # What stands in the form is where one is stuck.
    st.session_state[_TYPED] = st.session_state[form.PROMPT]


def _show(session_id: str) -> None:
    typed = st.text_input(
        "What do you have in mind?",
        key=_TYPED,
        live="300ms",
        placeholder="Type a few words, or nothing at all",
    )
    with notices.in_plain_words(), st.container(key="ideas-found", gap="small"):
        found = connect().prompts.recommend(typed or None, session_id=session_id, limit=_MOST)
        for number, idea in enumerate(found):
            with st.container(horizontal=True, vertical_alignment="center", wrap=False):
                if idea.image is not None:
                    st.image(pictures.thumbnail(idea.image.id), width=56, alt="")
                with st.container(gap="xxsmall"):
                    if st.button(
                        words.escape(words.short(idea.prompt, 120)),
                        key=f"idea-{number}",
                        on_click=_take,
                        args=(idea.prompt,),
                        type="tertiary",
                    ):
                        st.rerun()
                    st.caption(words.escape(idea.reason))
        if not found:
            st.caption("Nothing comes to mind for these words.")


def _take(prompt: str) -> None:
    st.session_state[form.PROMPT] = prompt
    st.session_state["ideas"] = False

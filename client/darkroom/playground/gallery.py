"""Grids of images, of which several can be chosen; and the History tab."""

from collections.abc import Callable, Sequence

import streamlit as st

import darkroom
from darkroom.playground.cards import PICK, show_small
from darkroom.playground.connection import connect, zip_of
from darkroom.playground.dialogs import open_comparison
from darkroom.playground.formatting import match, when
from darkroom.playground.state import (
    Card,
    delete,
    errors_shown_here,
    existing,
    set_star,
)
from darkroom.types import HistoryImage

PAGE = 24
_HERE, _EVERYWHERE = "This session", "All sessions"


def show_history(session_id: str) -> None:
    """Draw the History tab: images, newest first or by a query, of the session or of all."""
    with st.container(horizontal=True, vertical_alignment="center", key="history-bar"):
        query = st.text_input(
            "Search these images",
            key="history-query",
            type="search",
            placeholder="Search these images",
            label_visibility="collapsed",
            on_change=show_first_page,
            args=("history",),
            persist_state="session",
        ).strip()
        where = st.segmented_control(
            "Session",
            [_HERE, _EVERYWHERE],
            default=_HERE,
            required=True,
            key="history-where",
            label_visibility="collapsed",
            persist_state="session",
            on_change=show_first_page,
            args=("history",),
        )
        starred = st.toggle("Starred only", key="history-starred", persist_state="session")
    with errors_shown_here():
        results = _find_history(session_id if where == _HERE else None, query, starred)
        if results:
            show_grid("history", [Card.of(image, _history_note(image)) for image in results])
        elif query or starred:
            st.info("No image matches.", icon=":material/search_off:")
        else:
            st.info(
                "This session has no images yet. What you generate in it is kept here, and this "
                "page's address brings you back.",
                icon=":material/history:",
            )


def _find_history(session_id: str | None, query: str, starred: bool) -> Sequence[darkroom.Image]:
    client, most = connect(), limit("history")
    if session_id is None or starred:
        found = client.search(
            query or None, session_id=session_id, starred=starred or None, page_size=PAGE
        )
        return [hit.image for hit in found.take(most)]
    try:
        return client.sessions.images(session_id, q=query or None, page_size=PAGE).take(most)
    except darkroom.errors.NotFoundError:
        return []  # a session's first job creates it


def _history_note(image: darkroom.Image) -> str:
    score = image.score if isinstance(image, HistoryImage) else None
    if score is not None:
        return match(score)
    return when(image.created_at) if image.created_at else ""


def limit(name: str) -> int:
    """How many images of a list to fetch: one more than shown tells whether there are more."""
    return _shown(name) + 1


def show_more_of(name: str, is_more: bool) -> None:
    """Draw a button for more of a list, if there is more than is shown."""
    if is_more:
        st.button("Show more", key=f"{name}-more", on_click=_show_more, args=(name,))


def show_grid(
    name: str,
    cards: Sequence[Card],
    unfold: Callable[[str], None] | None = None,
    *,
    is_more: bool | None = None,
) -> None:
    """Draw the images of a list, and a button for more.

    `unfold` is as in `show_small`. `is_more`: whether more follow these; None: they were fetched
    up to the list's `limit`.
    """
    if is_more is None:
        is_more = len(cards) >= limit(name)
        cards = cards[: limit(name) - 1]
    selects = st.toggle("Select several", key=f"{name}-selects", persist_state="session")
    if selects:
        _show_selection(name, cards)
    show_small(cards, selectable=selects, unfold=unfold)
    show_more_of(name, is_more)


def _show_selection(name: str, cards: Sequence[Card]) -> None:
    """Draw what can be done with the selected images at once."""
    keys = {card.id: PICK.format(card.id) for card in cards}
    chosen = [card for card in existing(cards) if st.session_state.get(keys[card.id])]
    with st.container(horizontal=True, vertical_alignment="center", key=f"{name}-selection"):
        st.markdown(f"{len(chosen)} selected", width="content")
        for label, icon, least, run in (
            ("Star", ":material/star:", 1, _star),
            ("Compare", ":material/compare:", 2, lambda pair: open_comparison(*pair)),
            ("Delete", ":material/delete:", 1, delete),
        ):
            st.button(
                label,
                icon=icon,
                key=f"{name}-{label.lower()}",
                disabled=len(chosen) < least or (least == 2 and len(chosen) != least),
                on_click=run,
                args=(chosen,),
                help="Select two." if least == 2 else None,
            )
        st.download_button(
            "Download ZIP",
            lambda: zip_of(chosen),
            file_name="darkroom.zip",
            mime="application/zip",
            key=f"{name}-zip",
            icon=":material/folder_zip:",
            disabled=not chosen,
            on_click="ignore",
        )


def _star(cards: Sequence[Card]) -> None:
    for card in cards:
        set_star(card, True)


def show_first_page(name: str) -> None:
    """Return to the beginning of a list; for callbacks."""
    st.session_state[_key(name)] = PAGE


def _show_more(name: str) -> None:
    st.session_state[_key(name)] = _shown(name) + PAGE


def _shown(name: str) -> int:
    shown: int = st.session_state.get(_key(name), PAGE)
    return shown


def _key(name: str) -> str:
    return f"{name}-shown"

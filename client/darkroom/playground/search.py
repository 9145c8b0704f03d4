"""The tab Search: pictures by the meaning of their prompts, or by another picture."""

from datetime import UTC, date, datetime, time
from typing import Any

import streamlit as st

from darkroom.playground import actions, notices, pictures, words
from darkroom.playground.cards import Picture, show_small
from darkroom.playground.connection import connect, models
from darkroom.types.gallery import Hit

_QUERY = "search-query"
_FILTERS = "search-filters"
_WANTED = "search-wanted"
_PAGE = 24
_ANY = "any"
_KINDS = {_ANY: "any", "txt2img": "from text", "img2img": "from an image"}


def show(session_id: str) -> None:
    """Draws the tab."""
    like: Picture | None = st.session_state.get(actions.SEARCH_LIKE)
    query = _ask(like)
    filters = _show_filters(session_id)
    if like is None and not query.strip() and not filters["starred"]:
        st.info(
            "Search compares meanings: *winter peaks in the evening* finds *snowy mountains at "
            "dusk*. Names, numbers and whole phrases count too.",
            icon=":material/search:",
        )
        return
    with notices.in_plain_words():
        _show_hits(_find(query, like, filters))


def _ask(like: Picture | None) -> str:
    query: str = st.text_input(
        "What do the pictures show?",
        key=_QUERY,
        type="search",
        placeholder="What do the pictures show?",
        label_visibility="collapsed",
        on_change=_new_search,
        persist_state="session",
    )
    if like is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.image(pictures.thumbnail(like.id), width=72, alt=like.prompt)
            st.markdown(f"Like **{words.escape(words.short(like.prompt))}**", width="content")
            st.button("Without it", icon=":material/close:", key="like-away", on_click=_new_search)
    return query


def _new_search() -> None:
    st.session_state.pop(actions.SEARCH_LIKE, None)
    st.session_state[_WANTED] = _PAGE


def _show_filters(session_id: str) -> dict[str, Any]:
    with st.expander("Filters", icon=":material/filter_alt:", key=_FILTERS):
        columns = st.columns(4)
        where = columns[0].selectbox(
            "Session",
            ["all", "this one"],
            key="filter-session",
            persist_state="session",
        )
        names = [_ANY, *(model.name for model in models())]
        model = columns[1].selectbox("Model", names, key="filter-model", persist_state="session")
        kind = columns[2].selectbox(
            "Kind",
            list(_KINDS),
            format_func=_KINDS.__getitem__,
            key="filter-kind",
            persist_state="session",
        )
        seed = columns[3].number_input(
            "Seed",
            min_value=0,
            value=None,
            step=1,
            key="filter-seed",
            placeholder="any",
            persist_state="session",
        )
        first = columns[0].date_input(
            "From", value=None, key="filter-from", persist_state="session"
        )
        last = columns[1].date_input("To", value=None, key="filter-to", persist_state="session")
        least = columns[2].slider(
            "Score at least", 0.0, 1.0, 0.0, 0.05, key="filter-score", persist_state="session"
        )
        various = columns[2].toggle(
            "Near-duplicates later", value=True, key="filter-various", persist_state="session"
        )
        starred = columns[3].toggle("Only starred", key="filter-starred", persist_state="session")
    return {
        "session_id": session_id if where == "this one" else None,
        "model": None if model == _ANY else model,
        "kind": None if kind == _ANY else kind,
        "seed": seed,
        "created_after": _start_of(first),
        "created_before": _end_of(last),
        "min_score": least or None,
        "starred": starred or None,
        "diversity": various or None,
    }


def _start_of(day: date | None) -> datetime | None:
    return datetime.combine(day, time.min, UTC) if day else None


def _end_of(day: date | None) -> datetime | None:
    return datetime.combine(day, time.max, UTC) if day else None


def _find(query: str, like: Picture | None, filters: dict[str, Any]) -> list[Hit]:
    wanted = st.session_state.get(_WANTED, _PAGE)
    client = connect()
    # One more than is shown says whether there are more.
    if like is not None:
        return client.images.similar(like.id, page_size=_PAGE, **filters).take(wanted + 1)
    if not query.strip():
        filters = {**filters, "min_score": None, "diversity": None}
    return client.search(query.strip() or None, page_size=_PAGE, **filters).take(wanted + 1)


def _show_hits(hits: list[Hit]) -> None:
    wanted = st.session_state.get(_WANTED, _PAGE)
    if not hits:
        st.info("No picture fits. Fewer filters or other words may find some.")
        return
    found = [Picture.of(hit.image, _how_near(hit)) for hit in hits[:wanted]]
    show_small(found, actions.OF_SEARCH)
    if len(hits) > wanted:
        st.button("Show more", key="search-more", on_click=_show_more)


def _how_near(hit: Hit) -> str:
    if hit.score is None or hit.similarity is None:
        return ""
    return f"score {hit.score:.2f} · similarity {hit.similarity:.2f}"


def _show_more() -> None:
    st.session_state[_WANTED] = st.session_state.get(_WANTED, _PAGE) + _PAGE

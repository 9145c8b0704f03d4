"""The Search tab: images by words, by another image, or by filters alone."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from time import monotonic
from typing import Any

import streamlit as st

from darkroom.playground.connection import connect, models, thumbnail
from darkroom.playground.formatting import escape, match, short, zone
from darkroom.playground.gallery import PAGE, limit, show_first_page, show_grid
from darkroom.playground.state import (
    IMAGE_TYPES,
    SEARCH_IMAGE,
    Card,
    changes,
    errors_shown_here,
    show_uploader,
    take_upload,
)
from darkroom.types import Hit

_PAGE = 96
"""How many images to ask for at a time; the API folds within them."""
_KEPT_SECONDS = 60.0
_FOUND = "search-found"
"""Key of what the last search found."""
_FILE = "search-file"
_UNFOLDED = "search-unfolded"
"""Key of the ids of images whose near-duplicates are shown."""
_ANY = "any"
_KINDS = {
    _ANY: "any",
    "txt2img": "from text",
    "img2img": "from an image",
    "inpaint": "repainted",
    "upscale": "upscaled",
}
_OFF: dict[str, Any] = {
    "filter-session": "all",
    "filter-model": _ANY,
    "filter-kind": _ANY,
    "filter-seed": None,
    "filter-from": None,
    "filter-to": None,
    "filter-score": 0,
    "filter-starred": False,
}
"""Key of a filter → the value that leaves nothing out."""
_ORDERS = {"relevance": "Best match", "similarity": "Similarity"}

Like = Card | tuple[str, bytes]
"""An image that is here, or a file."""


def show(session_id: str) -> None:
    """Draw the tab."""
    like: Like | None = st.session_state.get(SEARCH_IMAGE)
    query = _show_query()
    if like is not None:
        _show_like(like)
    options = _show_options(session_id, has_words=bool(query) and like is None)
    with errors_shown_here():
        results, is_more = _find(query, like, options)
        if not results:
            st.info(_why_none(query, like), icon=":material/search_off:")
            return
        if not query and like is None:
            st.caption("Newest first. Words or an image sort by how well they match.")
        show_grid("search", _cards(results, options), _unfold, is_more=is_more)


def _show_query() -> str:
    words, image = st.columns([3, 2], vertical_alignment="top")
    query: str = words.text_input(
        "Describe the images you are looking for",
        key="search-query",
        type="search",
        placeholder="winter peaks in the evening",
        on_change=_new_search,
        persist_state="session",
    )
    with image, st.container(key="search-drop"):
        show_uploader(
            "Or drop an image",
            _FILE,
            IMAGE_TYPES,
            max_megabytes=10,
            on_change=_take_image,
            help="One made by Darkroom, whose prompt it knows; or any, where the operator has set "
            "up a model that compares pixels.",
        )
    return query.strip()


def _show_like(like: Like) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        if isinstance(like, Card):
            name = escape(short(like.prompt))
            st.image(thumbnail(like.id), width=72, alt=like.prompt)
        else:  # which nobody has checked: its name alone is drawn
            name = escape(short(like[0]))
        st.markdown(f"Similar to **{name}**", width="content")
        st.button(
            "Remove", icon=":material/close:", key="search-image-remove", on_click=_new_search
        )


def _new_search() -> None:
    st.session_state.pop(SEARCH_IMAGE, None)
    _start_anew()


def _start_anew() -> None:
    st.session_state.pop(_UNFOLDED, None)
    show_first_page("search")


def _take_image() -> None:
    file = take_upload(_FILE)
    if file is not None:
        st.session_state[SEARCH_IMAGE] = (file.name, file.getvalue())
        _start_anew()


def _show_options(session_id: str, *, has_words: bool) -> dict[str, Any]:
    """Draw order, folding and filters; return them as arguments of a search."""
    with st.container(horizontal=True, vertical_alignment="center", key="search-bar"):
        order = st.segmented_control(
            "Order",
            list(_ORDERS),
            format_func=_ORDERS.__getitem__,
            default="relevance",
            required=True,
            key="search-order",
            label_visibility="collapsed",
            persist_state="session",
            disabled=not has_words,
            on_change=_start_anew,
            help="*Best match* counts words, too; *Similarity* the meaning alone.",
        )
        folds = st.toggle(
            "Fold near-duplicates", value=True, key="search-fold", persist_state="session"
        )
    filters = _show_filters(session_id)
    least = filters.pop("min_score")
    return {
        **filters,
        "fold": folds or None,
        "rank": order if has_words and order != "relevance" else None,
        "min_score": least / 100 if least and has_words else None,
    }


def _show_filters(session_id: str) -> dict[str, Any]:
    values = st.session_state
    active = sum(values.get(key, off) != off for key, off in _OFF.items())
    title = f"Filters: {active} active" if active else "Filters"
    with st.expander(title, icon=":material/filter_alt:", key="search-filters"):
        columns = st.columns(4)
        where = columns[0].selectbox(
            "Session", ["all", "this one"], key="filter-session", **_filter()
        )
        names = [_ANY, *(model.name for model in models())]
        model = columns[1].selectbox("Model", names, key="filter-model", **_filter())
        kind = columns[2].selectbox(
            "Kind", list(_KINDS), format_func=_KINDS.__getitem__, key="filter-kind", **_filter()
        )
        seed = columns[3].number_input(
            "Seed",
            min_value=0,
            value=None,
            step=1,
            key="filter-seed",
            placeholder="any",
            **_filter(),
        )
        first = columns[0].date_input("From", value=None, key="filter-from", **_filter())
        last = columns[1].date_input("To", value=None, key="filter-to", **_filter())
        least = columns[2].slider("Minimum match, %", 0, 100, 0, 5, key="filter-score", **_filter())
        starred = columns[3].toggle("Starred only", key="filter-starred", **_filter())
    return {
        "session_id": session_id if where == "this one" else None,
        "model": None if model == _ANY else model,
        "kind": None if kind == _ANY else kind,
        "seed": seed,
        "created_after": _midnight(first),
        "created_before": _midnight(last + timedelta(days=1) if last else None),
        "min_score": least,
        "starred": starred or None,
    }


def _filter() -> dict[str, Any]:
    return {"persist_state": "session", "on_change": _start_anew}


def _midnight(day: date | None) -> datetime | None:
    return datetime.combine(day, time.min, zone()) if day else None


@dataclass
class _Found:
    """The pages of one search so far, kept because each click redraws the page."""

    request: object
    fetched_at: float
    hits: list[Hit]
    pages: int = 0
    cursor: str | None = None
    """Where the next page begins; None: before the first page, or after the last."""


def forget() -> None:
    """Search again when the tab is next drawn: there may be other images."""
    st.session_state.pop(_FOUND, None)


def _find(query: str, like: Like | None, options: dict[str, Any]) -> tuple[list[Hit], bool]:
    """What to show, and whether there is more; each "Show more" fetches a page at most."""
    changed = changes(of_stars=bool(options["starred"]))
    request = (connect(), query, like, options, changed)
    found: _Found | None = st.session_state.get(_FOUND)
    now = monotonic()
    if found is None or found.request != request or now - found.fetched_at > _KEPT_SECONDS:
        found = _Found(request, now, [])
    shown = limit("search") - 1
    while found.pages == 0 or (
        found.cursor and len(found.hits) <= shown and found.pages < shown // PAGE
    ):
        _fetch(found, query, like, options)
    st.session_state[_FOUND] = found
    return found.hits[:shown], bool(found.cursor) or len(found.hits) > shown


def _fetch(found: _Found, query: str, like: Like | None, options: dict[str, Any]) -> None:
    client = connect()
    page: dict[str, Any] = {"page_size": _PAGE, "after": found.cursor}
    if like is None:
        answer = client.search(query or None, **page, **options).page()
    else:
        source = like.id if isinstance(like, Card) else like
        filters = {name: value for name, value in options.items() if name != "rank"}
        answer = client.images.similar(source, **page, **filters).page()
    found.hits += answer.data
    found.pages, found.cursor = found.pages + 1, answer.next_cursor


def _cards(results: list[Hit], options: dict[str, Any]) -> list[Card]:
    """A card for each result, and behind it for each of its near-duplicates that are shown."""
    cards, unfolded = [], st.session_state.get(_UNFOLDED, set())
    for hit in results:
        score = hit.similarity if options.get("rank") == "similarity" else hit.score
        cards.append(Card.of(hit.image, match(score), alike=len(hit.near_duplicates)))
        if hit.image.id in unfolded:
            cards += [Card.of(image, "like the one before") for image in hit.near_duplicates]
    return cards


def _unfold(image_id: str) -> None:
    unfolded: set[str] = st.session_state.setdefault(_UNFOLDED, set())
    unfolded ^= {image_id}


def _why_none(query: str, like: Like | None) -> str:
    if query or like is not None:
        return "Nothing matches. Try fewer filters or other words."
    return (
        "No image is left by these filters. Without filters you see all images, newest first; "
        "words find them by meaning: *winter peaks in the evening* finds *snowy mountains at dusk*."
    )

"""What the buttons of a picture do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from darkroom.playground import dialogs, form, jobs, notices, session
from darkroom.playground.connection import connect

if TYPE_CHECKING:
    from darkroom.playground.cards import Picture

SEARCH_LIKE = "search-like"
"""Key of the picture that a search compares with."""
VARY_STRENGTH = 0.5


@dataclass(frozen=True)
class Action:
    """A button's words, and what it does with the picture."""

    label: str
    icon: str
    help: str
    run: Callable[["Picture"], None]


def act(name: str, picture: "Picture") -> None:
    """Runs an action; for callbacks."""
    with notices.kept_for_the_top():
        ACTIONS[name].run(picture)


def _fill(picture: "Picture") -> dict[str, object]:
    """Puts the picture's own settings into the form, and returns them."""
    settings = jobs.settings_of(connect().jobs.get(picture.job_id))
    del settings["seeds"]
    settings |= {"seed": picture.seed, "num_images": 1}
    for note in form.fill(settings):
        notices.keep(note, kind="note")
    return settings


def _again(picture: "Picture") -> None:
    settings = _fill(picture)
    jobs.submit(settings)
    session.open_tab("Generate")


def _take_over(picture: "Picture") -> None:
    _fill(picture)
    notices.keep("The form has its prompt, seed and settings.", kind="good")
    session.open_tab("Generate")


def _vary(picture: "Picture") -> None:
    count = st.session_state.get(form.COUNT, 1)
    _fill(picture)
    form.use_as_initial(picture.id, f"seed {picture.seed}")
    state = st.session_state
    state[form.COUNT], state[form.STRENGTH] = count, VARY_STRENGTH
    state[form.RESIZE] = "fill"  # The form has the size of this very image.
    state[form.SEED_MODE] = form.RANDOM
    jobs.submit(form.body())
    session.open_tab("Generate")


def _as_initial(picture: "Picture") -> None:
    form.use_as_initial(picture.id, f"seed {picture.seed}")
    if not st.session_state.get(form.PROMPT):
        st.session_state[form.PROMPT] = picture.prompt
    notices.keep("The next pictures start from this one.", kind="good")
    session.open_tab("Generate")


def _more_like_this(picture: "Picture") -> None:
    st.session_state[SEARCH_LIKE] = picture
    session.open_tab("Search")


ACTIONS = {
    "again": Action(
        "Same seed again",
        ":material/replay:",
        "Submits the very same settings and seed: the same picture. They also go into the form, "
        "where a changed word varies it.",
        _again,
    ),
    "vary": Action(
        "Vary",
        ":material/shuffle:",
        "Starts from this picture with another seed: something near to it.",
        _vary,
    ),
    "initial": Action(
        "Use as initial image",
        ":material/add_photo_alternate:",
        "The next pictures start from this one; change the prompt and the strength first.",
        _as_initial,
    ),
    "receipt": Action(
        "Show receipt",
        ":material/receipt_long:",
        "How this picture was made.",
        dialogs.open_receipt,
    ),
    "reproduce": Action(
        "Reproduce",
        ":material/fact_check:",
        "Makes the picture again from its receipt and compares every pixel.",
        dialogs.open_reproduce,
    ),
    "like": Action(
        "More like this",
        ":material/image_search:",
        "Searches for pictures with prompts of like meaning.",
        _more_like_this,
    ),
    "take": Action(
        "Take over prompt and seed",
        ":material/input:",
        "Puts the prompt, the seed and all other settings into the form.",
        _take_over,
    ),
    "delete": Action(
        "Delete",
        ":material/delete:",
        "Deletes the picture for good.",
        dialogs.open_delete,
    ),
}
OF_SEARCH = ("take", "like", "again", "vary", "initial", "receipt", "reproduce")
OF_HISTORY = (*OF_SEARCH, "delete")

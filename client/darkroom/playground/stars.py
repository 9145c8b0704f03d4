"""What this browser changed of pictures: stars it gave, pictures it deleted."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import streamlit as st

from darkroom.playground import notices
from darkroom.playground.connection import connect

_STARS = "stars"
_GONE = "gone"


class _HasStar(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def starred(self) -> bool: ...


Starred = TypeVar("Starred", bound=_HasStar)


def is_starred(picture: _HasStar) -> bool:
    """Whether it has a star now; what was listed earlier may say otherwise."""
    changed: dict[str, bool] = st.session_state.get(_STARS, {})
    return changed.get(picture.id, picture.starred)


def turn(picture: _HasStar, starred: bool) -> None:
    """Gives or takes the star; for callbacks."""
    with notices.kept_for_the_top():
        images = connect().images
        (images.star if starred else images.unstar)(picture.id)
        st.session_state.setdefault(_STARS, {})[picture.id] = starred


def still_there(found: Sequence[Starred]) -> list[Starred]:
    """Without the pictures that were deleted since they were listed."""
    gone: set[str] = st.session_state.get(_GONE, set())
    return [picture for picture in found if picture.id not in gone]


def delete(picture: _HasStar) -> None:
    """Deletes a picture for good; for callbacks."""
    with notices.kept_for_the_top():
        connect().images.delete(picture.id)
        st.session_state.setdefault(_GONE, set()).add(picture.id)
        notices.keep("The picture is deleted.", kind="good")

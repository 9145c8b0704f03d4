"""The one client of this process, and the models, which every drawing of the page asks for."""

import streamlit as st

import darkroom
from darkroom.types.service import Model


@st.cache_resource(show_spinner=False)
def connect() -> darkroom.Client:
    """The client, with URL and key from the environment or `.darkroom/env`.

    Raises:
        darkroom.DarkroomError: neither names an API.
    """
    # Someone looks at the page: rather tell soon that there is no answer than try for long.
    return darkroom.Client(timeout=20, retries=1, patience=5)


@st.cache_data(ttl=10, show_spinner=False)
def models() -> list[Model]:
    """The models that the key may use, the default first."""
    return sorted(connect().models.list(), key=lambda model: not model.default)

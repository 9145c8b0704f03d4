"""File uploaders that are empty again once their file was taken."""

from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

_USES = "uploads"


def show(
    label: str, name: str, types: Sequence[str], *, most_megabytes: int, **options: Any
) -> UploadedFile | None:
    """Draws an uploader; returns the file that lies in it. ``options`` are Streamlit's."""
    file: UploadedFile | None = st.file_uploader(
        label, list(types), key=_key(name), max_upload_size=most_megabytes, **options
    )
    return file


def take(name: str) -> UploadedFile | None:
    """The file, which leaves the uploader; for callbacks."""
    file: UploadedFile | None = st.session_state.get(_key(name))
    if file is not None:
        # A widget with a new key is a new, empty one: there is no other way to take a file out.
        uses = st.session_state.setdefault(_USES, {})
        uses[name] = uses.get(name, 0) + 1
    return file


def _key(name: str) -> str:
    return f"{name}-{st.session_state.get(_USES, {}).get(name, 0)}"

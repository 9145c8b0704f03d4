"""Bytes of pictures: fetched through the client once, and kept in this process's memory.

The page gets its pictures from the playground and not from S3's presigned URLs: a browser need not
reach the object store, an open page does not outlive its URLs, and everything has one origin.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import streamlit as st

from darkroom.playground.connection import connect

_KEPT_FILES = 64
_KEPT_THUMBNAILS = 2_000
_AT_ONCE = 8


@st.cache_data(max_entries=_KEPT_FILES, show_spinner=False)
def content(image_id: str) -> bytes:
    """The picture's file."""
    return connect().images.download(image_id)


def show(image_id: str, alt: str) -> None:
    """Draws the picture, as wide as there is room."""
    data = content(image_id)
    # Else Streamlit makes a JPEG of a PNG; this way the file goes to the browser as it is, with
    # its receipt.
    as_it_is: Literal["JPEG", "PNG"] = "JPEG" if data.startswith(b"\xff\xd8") else "PNG"
    st.image(data, width="stretch", alt=alt, output_format=as_it_is)


@st.cache_data(max_entries=_KEPT_THUMBNAILS, show_spinner=False)
def thumbnail(image_id: str) -> bytes:
    """The small WebP."""
    return connect().images.thumbnail(image_id)


def fetch_thumbnails(image_ids: Iterable[str]) -> None:
    """Brings many thumbnails into memory, some at a time instead of one after the other."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(thumbnail, image_ids))

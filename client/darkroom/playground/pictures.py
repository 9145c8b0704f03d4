"""Bytes of pictures: fetched through the client once, and kept in this process's memory.

The page gets its pictures from the playground and not from S3's presigned URLs: a browser need not
reach the object store, an open page does not outlive its URLs, and everything has one origin.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import streamlit as st

from darkroom.playground.connection import connect

_KEPT_FILES = 64
_KEPT_THUMBNAILS = 2_000
_AT_ONCE = 8


@st.cache_data(max_entries=_KEPT_FILES, show_spinner=False)
def content(image_id: str) -> bytes:
    """The picture's file."""
    return connect().images.download(image_id)


@st.cache_data(max_entries=_KEPT_THUMBNAILS, show_spinner=False)
def thumbnail(image_id: str) -> bytes:
    """The small WebP."""
    return connect().images.thumbnail(image_id)


def fetch_thumbnails(image_ids: Iterable[str]) -> None:
    """Brings many thumbnails into memory, some at a time instead of one after the other."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(thumbnail, image_ids))

"""The clients of this process, and what they keep in memory: models, images, running jobs.

The page gets its images from the playground and not from S3's presigned URLs: a browser need not
reach the object store, an open page does not outlive its URLs, and everything has one origin.
"""

import io
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import streamlit as st

import darkroom
from darkroom.playground.__main__ import ASKS_FOR_KEY
from darkroom.types.service import Lora, Model

KEY = "api-key"
"""Key, in the state of the browser session, of the API key that its user entered."""
_MAX_CLIENTS = 256
_MAX_IMAGES = 64
_MAX_THUMBNAILS = 2_000
_KEPT_SECONDS = 180.0
"""So soon a revoked key no longer gets, and nobody sees, what was kept: clients and images."""
_DOWNLOADS = 8
"""Concurrent downloads of thumbnails."""
_MAX_STREAMS = 48
"""Less than the 64 event streams that one key may hold; further jobs are polled instead."""
_RETRY_SECONDS = 1.0
_KEEP_SECONDS = 300.0
"""How long an ended job is remembered."""


def asks_for_key() -> bool:
    """Whether users enter keys of their own: the playground has none then."""
    return os.environ.get(ASKS_FOR_KEY) == "1"


def _key() -> str | None:
    """The key of this browser session; None: the playground's own."""
    if not asks_for_key():
        return None
    key: str | None = st.session_state.get(KEY)
    if not key:  # and never one that the client would find on this machine
        raise darkroom.errors.ConfigurationError("no API key was entered")
    return key


def connect() -> darkroom.Client:
    """The client, with its URL from the environment or `.darkroom/env`.

    Raises:
        darkroom.DarkroomError: neither names an API.
    """
    return _client(_key())


# What follows is kept for all browsers, so the key is always among the arguments: nobody gets
# what another key was given.


@st.cache_resource(show_spinner=False, max_entries=_MAX_CLIENTS, ttl=_KEPT_SECONDS)
def _client(key: str | None) -> darkroom.Client:
    # Someone is looking at the page: fail soon rather than retry for long.
    client = darkroom.Client(api_key=key, timeout=20, retries=1, retry_timeout=5)
    if key is not None:  # a wrong one must not push out the clients of others
        try:
            client.models.list().page()
        except BaseException:
            client.close()
            raise
    return client


def models() -> list[Model]:
    """The models that the key may use, the default first."""
    return _models(_key())


@st.cache_data(ttl=10, show_spinner=False)
def _models(key: str | None) -> list[Model]:
    return sorted(_client(key).models.list(), key=lambda model: not model.default)


def loras_for(model: str) -> list[Lora]:
    """The LoRAs that the model may take."""
    return [lora for lora in _loras(_key()) if model in lora.models]


@st.cache_data(ttl=10, show_spinner=False)
def _loras(key: str | None) -> list[Lora]:
    return list(_client(key).loras.list())


def queue_depth() -> tuple[int, int] | None:
    """(queued, running) jobs of all tenants a moment ago; None: the key may not know."""
    return _queue_depth(_key())


@st.cache_data(ttl=2, show_spinner=False)
def _queue_depth(key: str | None) -> tuple[int, int] | None:
    try:
        depths = list(_client(key).queues.list())
    except darkroom.errors.PermissionDeniedError:
        return None
    return sum(one.queued for one in depths), sum(one.running for one in depths)


def image_file(image_id: str) -> bytes:
    """The image's file."""
    return _image_file(_key(), image_id)


@st.cache_data(max_entries=_MAX_IMAGES, ttl=_KEPT_SECONDS, show_spinner=False)
def _image_file(key: str | None, image_id: str) -> bytes:
    return _client(key).images.download(image_id)


def thumbnail(image_id: str) -> bytes:
    """A small WebP of the image."""
    return _thumbnail(_key(), image_id)


@st.cache_data(max_entries=_MAX_THUMBNAILS, ttl=_KEPT_SECONDS, show_spinner=False)
def _thumbnail(key: str | None, image_id: str) -> bytes:
    return _client(key).images.thumbnail(image_id)


def prefetch_thumbnails(image_ids: Iterable[str]) -> None:
    """Load many thumbnails into memory concurrently."""
    load = partial(_thumbnail, _key())  # the threads belong to no browser session
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        list(pool.map(load, image_ids))


class Named(Protocol):
    """An image, or what stands for one."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def file_name(self) -> str:
        """The name of its file."""


def zip_of(images: Iterable[Named]) -> bytes:
    """Their files in a ZIP, in memory."""
    chosen, buffer = list(images), io.BytesIO()
    load = partial(_image_file, _key())
    with ThreadPoolExecutor(_DOWNLOADS) as pool, zipfile.ZipFile(buffer, "w") as file:
        for image, data in zip(chosen, pool.map(load, (one.id for one in chosen)), strict=True):
            file.writestr(image.file_name, data)
    return buffer.getvalue()


def show_image(image_id: str, alt: str) -> None:
    """Draw the image as wide as there is room."""
    data = image_file(image_id)
    # Otherwise Streamlit turns a PNG into a JPEG; this way the browser gets the file as it is, with
    # its receipt.
    as_it_is: Literal["JPEG", "PNG"] = "JPEG" if data.startswith(b"\xff\xd8") else "PNG"
    st.image(data, width="stretch", alt=alt, output_format=as_it_is)


@dataclass
class Watched:
    """What is known of a job. Its thread writes it; every page in every browser reads it."""

    job: darkroom.Job
    steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Image index → (step, steps)."""
    job_fraction: float = 0.0
    """Progress of the whole job according to its latest event; 0 if unknown."""
    previews: dict[int, bytes] = field(default_factory=dict)
    """Image index → the newest preview, WebP."""
    error: darkroom.DarkroomError | None = None
    """Why it cannot be followed; the job itself may continue."""
    ended: float | None = None
    """When the thread ended, by the monotonic clock."""

    def take(self, event: darkroom.JobEvent) -> None:
        """Apply an event of the job's stream."""
        match event:
            case darkroom.JobChanged(job=job):
                self.job = job
            case darkroom.ProgressMade(image_index=index, step=step, steps=steps):
                self.steps[index] = (step, steps)
                self.job_fraction = event.job_fraction or 0.0
            case darkroom.PreviewMade(image_index=index, data=preview):
                self.previews[index] = preview

    @property
    def fraction(self) -> float:
        """Progress of the whole job, 0 to 1."""
        done = sum(step / steps for step, steps in self.steps.values() if steps)
        return min(1.0, max(self.job_fraction, done / max(1, len(self.job.seeds))))


class Watches:
    """Follows running jobs on threads of their own, so that drawing a page waits for nothing."""

    def __init__(self, client: darkroom.Client) -> None:
        """``client`` is shared with the pages; it is thread-safe."""
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[str, Watched] = {}

    def follow(self, job: darkroom.Job) -> Watched:
        """What is known of the job; start to follow it if nobody does yet."""
        with self._lock:
            self._drop_old()
            known = self._known.get(job.id)
            if known is not None and known.job.sequence >= job.sequence:
                return known
            known = self._known[job.id] = Watched(job)
            alive = sum(one.ended is None for one in self._known.values())
            follow = self._stream if alive <= _MAX_STREAMS else self._poll
            threading.Thread(
                target=self._run, args=(known, follow), name=f"watch {job.id}", daemon=True
            ).start()
            return known

    def _run(self, watched: Watched, follow: Callable[[Watched], None]) -> None:
        while not watched.job.is_final:
            try:
                follow(watched)
                watched.error = None
            except darkroom.errors.NotFoundError as error:
                watched.error = error
                break
            except darkroom.DarkroomError as error:
                watched.error = error  # shown meanwhile; the job continues
                time.sleep(_RETRY_SECONDS)
        watched.ended = time.monotonic()

    def _stream(self, watched: Watched) -> None:
        for event in self._client.jobs.events(watched.job.id):
            watched.take(event)

    def _poll(self, watched: Watched) -> None:
        watched.job = self._client.jobs.get(watched.job.id)
        if not watched.job.is_final:
            time.sleep(_RETRY_SECONDS)

    def _drop_old(self) -> None:
        past = time.monotonic() - _KEEP_SECONDS
        old = [id_ for id_, one in self._known.items() if one.ended and one.ended < past]
        for id_ in old:
            del self._known[id_]


def watches() -> Watches:
    """The watches of this process, for all browsers with this key."""
    return _watches(_key())


@st.cache_resource(show_spinner=False, max_entries=_MAX_CLIENTS)
def _watches(key: str | None) -> Watches:
    return Watches(_client(key))

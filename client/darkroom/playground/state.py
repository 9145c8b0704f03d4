"""What one browser's page remembers: session, tab, notices, uploads, jobs, stars, deletions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

import darkroom
from darkroom.playground.connection import connect, watches
from darkroom.playground.formatting import count, explain

SESSION = "session"
"""Key of the session's field, in the state and in the URL."""
TAB = "tab"
"""Key of the open tab, in the state and in the URL."""
SEARCH_IMAGE = "search-image"
"""Key of what the Search tab compares with: a `Card`, or the name and bytes of a file."""
IMAGE_TYPES = ("png", "jpg", "jpeg", "webp")
"""Files that can be an initial image."""
MAX_JOBS = 6
"""Jobs that the Generate tab shows."""
_SEARCHED_JOBS = 100
"""Newest jobs of a session in which to look for those that belong to no batch."""
_JOBS = "jobs"
_NOTICES = "notices"
_TOAST_SECONDS = 4.0
_UPLOADS = "uploads"
_STARS = "stars"
_DELETED = "deleted"
_UNDO = "undo-images"
_UNDO_SECONDS = 58.0
"""The server restores for two more."""


def session() -> str:
    """The session that the page shows."""
    name: str = st.session_state[SESSION]
    return name


def open_tab(name: str) -> None:
    """Switch to another tab; for callbacks."""
    st.session_state[TAB] = name


@contextmanager
def errors_shown_here() -> Iterator[None]:
    """Show an error of the client in place of what could not be drawn."""
    try:
        yield
    except darkroom.DarkroomError as error:
        st.error(explain(error), icon=":material/error:")


@contextmanager
def errors_shown_on_top() -> Iterator[None]:
    """For callbacks, which cannot draw: show the error at the top of the next drawing."""
    notices = _notices()
    notices[:] = [one for one in notices if one.shown_at is None]  # those of the last action
    try:
        yield
    except darkroom.DarkroomError as error:
        notify(explain(error))


@dataclass
class _Notice:
    text: str
    kind: Literal["error", "warning", "success"]
    shown_at: float | None = None
    """By the monotonic clock; None: not yet."""


def _notices() -> list[_Notice]:
    notices: list[_Notice] = st.session_state.setdefault(_NOTICES, [])
    return notices


def notify(text: str, kind: Literal["error", "warning", "success"] = "error") -> None:
    """Show a message at the top, until the next action or its dismissal; a success is a toast."""
    _notices().append(_Notice(text, kind))


def show_notices() -> None:
    """Draw the messages. They stay: the end of a job may redraw the page at once."""
    now = time.monotonic()
    notices = _notices()
    for one in [*notices]:
        one.shown_at = one.shown_at or now
        if one.kind != "success":
            _show_notice(one, notices.index(one))
        elif now - one.shown_at < _TOAST_SECONDS:
            st.toast(one.text, icon=":material/check:")
        else:
            notices.remove(one)


def _show_notice(notice: _Notice, number: int) -> None:
    with st.container(horizontal=True, wrap=False, key=f"notice-{number}"):
        if notice.kind == "warning":
            st.warning(notice.text, icon=":material/info:")
        else:
            st.error(notice.text, icon=":material/error:")
        st.button(
            "Dismiss",
            key=f"notice-{number}-dismiss",
            icon=":material/close:",
            type="tertiary",
            on_click=_notices().remove,
            args=(notice,),
        )


def show_uploader(
    label: str, name: str, types: Sequence[str], *, max_megabytes: int, **options: Any
) -> UploadedFile | None:
    """Draw a file uploader and return its file. ``options`` are Streamlit's."""
    file: UploadedFile | None = st.file_uploader(
        label, list(types), key=_uploader_key(name), max_upload_size=max_megabytes, **options
    )
    return file


def take_upload(name: str) -> UploadedFile | None:
    """Take the file out of the uploader, which is then empty again; for callbacks."""
    file: UploadedFile | None = st.session_state.get(_uploader_key(name))
    if file is not None:
        # A widget with a new key is a new, empty one: there is no other way to take a file out.
        uses = st.session_state.setdefault(_UPLOADS, {})
        uses[name] = uses.get(name, 0) + 1
    return file


def _uploader_key(name: str) -> str:
    return f"{name}-{st.session_state.get(_UPLOADS, {}).get(name, 0)}"


def is_known(session_id: str) -> bool:
    """Whether this page has shown the session's jobs before."""
    return session_id in st.session_state.get(_JOBS, {})


def jobs(session_id: str) -> list[darkroom.Job]:
    """The jobs to show, newest first; unfinished ones are followed from now on."""
    known = _jobs(session_id)
    for job_id, job in known.items():
        if not job.is_final:
            known[job_id] = watches().follow(job).job
    return sorted(known.values(), key=lambda job: job.created_at, reverse=True)[:MAX_JOBS]


def show_job(job: darkroom.Job) -> None:
    """Show a job, in its present state, from now on."""
    _jobs(session())[job.id] = job


def dismiss_job(job_id: str) -> None:
    """Show the job no longer; nothing is deleted."""
    _jobs(session()).pop(job_id, None)


def _jobs(session_id: str) -> dict[str, darkroom.Job]:
    """Job id → the job as last seen. The first time, ask the API."""
    sessions: dict[str, dict[str, darkroom.Job]] = st.session_state.setdefault(_JOBS, {})
    if session_id not in sessions:
        newest = connect().jobs.list(session_id=session_id, page_size=_SEARCHED_JOBS).page().data
        own = [job for job in newest if job.batch_id is None]
        sessions[session_id] = {job.id: job for job in own[:MAX_JOBS]}
    return sessions[session_id]


@dataclass(frozen=True)
class Card:
    """What the page needs to know of an image."""

    id: str
    job_id: str
    prompt: str
    seed: int
    width: int
    height: int
    starred: bool
    content_type: str
    file_name: str
    note: str = ""
    """What a tab adds, such as a score."""
    alike: int = 0
    """How many near-duplicates are folded into it."""

    @classmethod
    def of(
        cls,
        image: darkroom.Image,
        note: str = "",
        *,
        job: darkroom.Job | None = None,
        alike: int = 0,
    ) -> Self:
        """From an image, as lists and searches return it; as part of a job, with the job."""
        return cls(
            id=image.id,
            job_id=job.id if job else image.job_id or "",
            prompt=job.prompt if job else image.prompt or "",
            seed=image.seed,
            width=image.width,
            height=image.height,
            starred=image.starred,
            content_type=image.content_type,
            file_name=image.file_name,
            note=note,
            alike=alike,
        )


def is_starred(card: Card) -> bool:
    """Whether it has a star now; what was listed earlier may be outdated."""
    changed: dict[str, bool] = st.session_state.get(_STARS, {})
    return changed.get(card.id, card.starred)


def set_star(card: Card, starred: bool) -> None:
    """Add or remove the star; for callbacks."""
    with errors_shown_on_top():
        images = connect().images
        (images.star if starred else images.unstar)(card.id)
        st.session_state.setdefault(_STARS, {})[card.id] = starred


def existing(cards: Sequence[Card]) -> list[Card]:
    """Without the images that were deleted since they were listed."""
    return [card for card in cards if card.id not in _deleted()]


def changes(*, of_stars: bool) -> tuple[frozenset[str], dict[str, bool]]:
    """What was deleted and starred here: lists from before it may be outdated."""
    return frozenset(_deleted()), dict(st.session_state.get(_STARS, {})) if of_stars else {}


def delete(cards: Sequence[Card]) -> None:
    """Delete images; for callbacks. They can be restored for a minute."""
    _for_each([card.id for card in cards], _delete)


def _delete(image_id: str) -> None:
    until = time.monotonic() + _UNDO_SECONDS  # of each image: to delete many takes a while
    connect().images.delete(image_id)
    _deleted().add(image_id)
    _undoable()[image_id] = until


def show_undo() -> None:
    """Draw a button that restores what was deleted, for as long as that is possible."""
    now, undoable = time.monotonic(), _undoable()
    for image_id in [one for one, until in undoable.items() if until <= now]:
        del undoable[image_id]
    if not undoable:
        return
    with st.container(horizontal=True, vertical_alignment="center", key="undo"):
        st.markdown(f"{count(len(undoable), 'image')} deleted.", width="content")
        st.button("Undo", icon=":material/undo:", key="undo-delete", on_click=_undo)
        # It goes away with its time.
        until = min(undoable.values())
        st.fragment(_end_undo, run_every=until - now + 0.5)(until)


def _end_undo(until: float) -> None:
    if time.monotonic() > until:
        st.rerun()


def _undo() -> None:
    _for_each([*_undoable()], _restore)


def _restore(image_id: str) -> None:
    connect().images.restore(image_id)
    _deleted().discard(image_id)
    del _undoable()[image_id]


def _for_each(image_ids: Sequence[str], change: Callable[[str], None]) -> None:
    """Each has an error of its own; only an unavailable service ends the rest, too."""
    with errors_shown_on_top():
        for image_id in image_ids:
            try:
                change(image_id)
            except darkroom.errors.APIStatusError as error:
                notify(explain(error))


def _undoable() -> dict[str, float]:
    """Deleted image → until when it can be restored, by the monotonic clock."""
    undoable: dict[str, float] = st.session_state.setdefault(_UNDO, {})
    return undoable


def _deleted() -> set[str]:
    deleted: set[str] = st.session_state.setdefault(_DELETED, set())
    return deleted

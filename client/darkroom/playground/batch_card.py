"""One batch: how far it is, how to steer it, its pictures as a contact sheet and as a ZIP."""

import tempfile
from itertools import islice
from pathlib import Path

import streamlit as st

from darkroom.playground import notices, words
from darkroom.playground.connection import connect
from darkroom.types.batches import Batch

_SECONDS = 1.0
_MOST_IN_ZIP = 500
"""Streamlit holds a download in memory; what is larger goes through the command line."""
_ON_SHEET = 24
_COLUMNS = 4
"""Of the contact sheet: still to be seen on a phone."""
_MOST_ERRORS = 100
_COLOURS = {
    "succeeded": "green",
    "partial": "orange",
    "failed": "red",
    "running": "blue",
    "canceled": "gray",
    "expired": "orange",
}


def show(batch: Batch, *, expanded: bool) -> None:
    """Draws a batch; one that has not ended is drawn anew every second on its own."""
    made = words.when(batch.created_at)
    name = words.escape(batch.session_id or batch.id)
    title = f"{words.count(batch.counts.total, 'job')} · {made} · {name}"
    with st.expander(
        title, expanded=expanded, key=f"batch-{batch.id}", on_change="rerun"
    ) as opened:
        if not opened.open:
            return
        active = not batch.is_final
        st.fragment(_show, run_every=_SECONDS if active else None)(batch.id, active)
        if not active:
            _show_results(batch)


def _show(batch_id: str, active: bool) -> None:
    with notices.in_plain_words():
        batch = connect().batches.get(batch_id)
        if active and batch.is_final:
            st.rerun()
        _show_state(batch)
        _show_buttons(batch)
        if batch.state == "failed" or batch.invalid_lines or batch.counts.failed:
            _show_errors(batch)


def _show_state(batch: Batch) -> None:
    state = "paused" if batch.paused and not batch.is_final else batch.state
    facts = [f":{_COLOURS.get(batch.state, 'gray')}-badge[{state}]"]
    facts.append(f"{batch.images.done:,} of {words.count(batch.images.total, 'picture')}")
    if batch.counts.failed:
        facts.append(f"{batch.counts.failed:,} failed")
    if batch.rate is not None and batch.state == "running":
        facts.append(f"{batch.rate.jobs_per_second:.1f} jobs/s")
    if batch.eta is not None and not batch.is_final:
        facts.append(f"done in about {words.until(batch.eta)}")
    if batch.counts.total:
        st.progress(batch.fraction, text=" · ".join(facts))
    else:
        st.markdown(" · ".join(facts))


def _show_buttons(batch: Batch) -> None:
    with st.container(horizontal=True):
        if not batch.is_final:
            if batch.paused:
                _button(batch, "resume", "Resume", ":material/play_arrow:")
            else:
                _button(batch, "pause", "Pause", ":material/pause:")
            _button(batch, "cancel", "Cancel", ":material/cancel:")
        elif batch.counts.failed or batch.counts.expired:
            _button(batch, "retry_failed", "Try the failed ones again", ":material/refresh:")


def _button(batch: Batch, verb: str, label: str, icon: str) -> None:
    clicked = st.button(
        label, icon=icon, key=f"{verb}-{batch.id}", on_click=_steer, args=(verb, batch.id)
    )
    if clicked:
        st.rerun()  # the whole page: whether it is drawn every second may have changed


def _steer(verb: str, batch_id: str) -> None:
    with notices.kept_for_the_top():
        getattr(connect().batches, verb)(batch_id)


def _show_errors(batch: Batch) -> None:
    found = list(islice(connect().batches.errors(batch.id), _MOST_ERRORS))
    if found:
        st.dataframe(
            [
                {
                    "line": one.line,
                    "name": one.custom_id,
                    "field": (one.pointer or "").strip("/"),
                    "what is wrong": one.message,
                }
                for one in found
            ],
            hide_index=True,
        )


def _show_results(batch: Batch) -> None:
    if not batch.images.done:
        return
    st.image(_contact_sheet(batch.id, batch.images.done), alt="contact sheet")
    if batch.images.done > _ON_SHEET:
        st.caption(f"The first {_ON_SHEET} pictures; all are in History and Search.")
    if batch.images.done > _MOST_IN_ZIP:
        st.caption(
            f"More than {_MOST_IN_ZIP} pictures are too many for a browser's ZIP: fetch them with "
            f"`darkroom batch run`, or from `GET /v1/batches/{batch.id}/archive`."
        )
        return
    st.download_button(
        "Download ZIP",
        lambda: _zip(batch.id),
        file_name=f"{batch.id}.zip",
        mime="application/zip",
        key=f"zip-{batch.id}",
        icon=":material/folder_zip:",
        on_click="ignore",
    )


@st.cache_data(max_entries=16, show_spinner=False)
def _contact_sheet(batch_id: str, done: int) -> bytes:
    """A WebP of the first pictures; more of them make a new one."""
    return connect().batches.contact_sheet(batch_id, limit=min(done, _ON_SHEET), columns=_COLUMNS)


def _zip(batch_id: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return connect().batches.archive(batch_id, Path(folder) / "pictures.zip").read_bytes()

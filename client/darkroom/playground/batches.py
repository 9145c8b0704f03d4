"""The Batches tab: a new batch, and this key's batches with their images and errors."""

import csv
import io
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import streamlit as st

from darkroom.errors import JOB_ADVICE
from darkroom.playground import batch_upload
from darkroom.playground.connection import connect
from darkroom.playground.formatting import count, escape, short, until, when
from darkroom.playground.gallery import PAGE, limit, show_grid, show_more_of
from darkroom.playground.state import Card, errors_shown_here, errors_shown_on_top
from darkroom.types.batches import Batch, BatchError

_REDRAW_SECONDS = 1.0
_MAX_ZIPPED = 500
"""Streamlit holds a download in memory; larger batches go through the command line."""
_ON_SHEET = 300
"""What the API draws on one."""
_MAX_ERRORS = 20
_MAX_DOWNLOADED_ERRORS = 50_000
_COLOURS = {
    "succeeded": "green",
    "partial": "orange",
    "failed": "red",
    "running": "blue",
    "canceled": "gray",
    "expired": "orange",
}
_FIX = "Correct it in the file, and upload these rows again."
_ENDINGS = {
    "canceled": "Nothing: it was canceled.",
    "expired": "Retry it; it then has no deadline.",
}


def show(session_id: str) -> None:
    """Draw the tab."""
    batch_upload.show(session_id)
    with errors_shown_here():
        listed = connect().batches.list(page_size=PAGE).take(limit("batches"))
        for number, batch in enumerate(listed[: limit("batches") - 1]):
            _show_batch(batch, expanded=number == 0)
        show_more_of("batches", len(listed) >= limit("batches"))
        if not listed:
            st.info(
                "There are no batches yet. Drop a file of prompts above; its format is there, too.",
                icon=":material/stacks:",
            )


def _show_batch(batch: Batch, *, expanded: bool) -> None:
    """Draw a batch; while it runs, its head redraws itself every second."""
    active = not batch.is_final
    with st.container(border=True, key=f"batch-{batch.id}"):
        st.fragment(_show_head, run_every=_REDRAW_SECONDS if active else None)(
            batch.id, batch.images.done if active else None
        )
        parts = ["Images"] if batch.images.done else []
        parts += ["errors"] if _has_errors(batch) else []
        if not parts:
            return
        with st.expander(
            " and ".join(parts).capitalize(),
            expanded=expanded,
            key=f"batch-open-{batch.id}",
            on_change="rerun",
        ) as opened:
            if opened.open:
                _show_errors(batch)
                _show_images(batch)


def _show_head(batch_id: str, done: int | None) -> None:
    """Draw state, name and progress; `done`: images that the page shows; None: it had ended."""
    with errors_shown_here():
        batch = connect().batches.get(batch_id)
        if done is not None and (
            batch.is_final or (batch.images.done != done and done < PAGE)  # more would not be seen
        ):
            st.rerun()
        state = "paused" if batch.paused and not batch.is_final else batch.state
        name = escape(short(batch.name or f"{count(batch.lines, 'prompt')} without a file", 60))
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(
                f":{_COLOURS.get(state, 'gray')}-badge[{state}] **{name}**", width="stretch"
            )
            _show_buttons(batch)
        if batch.is_final or not batch.counts.total:
            st.caption(_status(batch))
        else:
            st.progress(batch.fraction, text=_status(batch))


def _status(batch: Batch) -> str:
    parts = [f"{batch.images.done:,} of {count(batch.images.total, 'image')}"]
    if batch.counts.failed:
        parts.append(f"{count(batch.counts.failed, 'job')} failed")
    if batch.invalid_lines:
        parts.append(f"{count(batch.invalid_lines, 'row')} invalid")
    if batch.rate is not None and batch.state == "running":
        parts.append(f"{batch.rate.jobs_per_second:.1f} jobs/s")
    if batch.eta is not None and not batch.is_final:
        parts.append(f"done in about {until(batch.eta)}")
    parts += [when(batch.created_at), escape(batch.session_id or "default")]
    return " · ".join(parts)


def _show_buttons(batch: Batch) -> None:
    if not batch.is_final:
        if batch.paused:
            _button(batch, "resume", "Resume", ":material/play_arrow:")
        else:
            _button(batch, "pause", "Pause", ":material/pause:")
        _button(batch, "cancel", "Cancel", ":material/cancel:")
    elif batch.counts.failed or batch.counts.expired:
        _button(batch, "retry_failed", "Retry failed jobs", ":material/refresh:")


def _button(batch: Batch, verb: str, label: str, icon: str) -> None:
    clicked = st.button(
        label, icon=icon, key=f"{verb}-{batch.id}", on_click=_control, args=(verb, batch.id)
    )
    if clicked:
        st.rerun()  # the whole page, since this may start or stop the redrawing


def _control(verb: str, batch_id: str) -> None:
    with errors_shown_on_top():
        getattr(connect().batches, verb)(batch_id)


def _has_errors(batch: Batch) -> bool:
    counts = batch.counts
    return bool(batch.state == "failed" or batch.invalid_lines or counts.failed or counts.expired)


def _show_errors(batch: Batch) -> None:
    """Draw what went wrong, and what to do about it."""
    if not _has_errors(batch):
        return
    found = list(islice(connect().batches.errors(batch.id), _MAX_ERRORS + 1))
    st.table(
        [_row_of(error) for error in found[:_MAX_ERRORS]], border="horizontal", hide_index=True
    )
    if len(found) > _MAX_ERRORS:
        st.caption(f"The first {_MAX_ERRORS}; the file has all of them.")
    st.download_button(
        "Download errors",
        lambda: _errors_csv(batch.id),
        file_name=f"{batch.id}-errors.csv",
        mime="text/csv",
        key=f"errors-{batch.id}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
    )


def _row_of(error: BatchError) -> dict[str, str]:
    row = {
        "Row": "file" if error.line is None else str(error.line),
        "Name": error.custom_id or "",
        "Field": (error.pointer or "").strip("/"),
        "Problem": error.message or error.code,
        "What to do": _advice(error),
    }
    return {name: escape(short(text, 300)) for name, text in row.items()}


def _advice(error: BatchError) -> str:
    if error.type == "validation":
        return _FIX
    return _ENDINGS.get(error.code) or JOB_ADVICE.get(error.code) or "Retry it."


def _errors_csv(batch_id: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["row", "custom_id", "field", "code", "problem", "what to do"])
    for error in islice(connect().batches.errors(batch_id), _MAX_DOWNLOADED_ERRORS):
        cells = (error.line, error.custom_id, error.pointer, error.code, error.message)
        writer.writerow([*map(_plain_cell, cells), _advice(error)])
    return file.getvalue()


def _plain_cell(value: object) -> object:
    """Nothing that a spreadsheet would take for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _show_images(batch: Batch) -> None:
    if not batch.images.done:
        return
    name = f"batch-{batch.id}"
    show_grid(name, _cards(batch, limit(name)))
    with st.container(horizontal=True):
        if batch.images.done > _MAX_ZIPPED:
            st.caption(
                f"More than {_MAX_ZIPPED} images are too many for a ZIP in the browser: download "
                f"them with `darkroom batch fetch {batch.id} --out images`."
            )
        else:
            st.download_button(
                "Download all as ZIP",
                lambda: _zip(batch.id),
                file_name=f"{Path(batch.name or batch.id).stem}.zip",
                mime="application/zip",
                key=f"zip-{batch.id}",
                icon=":material/folder_zip:",
                on_click="ignore",
            )
        st.download_button(
            "Download contact sheet",
            lambda: connect().batches.contact_sheet(batch.id, limit=_ON_SHEET),
            file_name=f"{Path(batch.name or batch.id).stem}.webp",
            mime="image/webp",
            key=f"sheet-{batch.id}",
            icon=":material/grid_view:",
            on_click="ignore",
        )


def _cards(batch: Batch, most: int) -> Sequence[Card]:
    jobs = connect().batches.items(batch.id, state="succeeded", page_size=PAGE).take(most)
    return [Card.of(image, job.custom_id, job=job) for job in jobs for image in job.images][:most]


def _zip(batch_id: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return connect().batches.archive(batch_id, Path(folder) / "images.zip").read_bytes()

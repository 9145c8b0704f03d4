"""The session's jobs: unfinished ones, redrawn on their own, and the results of the others."""

import base64
from collections.abc import Sequence

import streamlit as st

from darkroom import Job
from darkroom.playground.cards import columns_for, show_large, show_small
from darkroom.playground.connection import Watched, connect, models, queue_depth, watches
from darkroom.playground.formatting import count, escape, explain_failure, short, span, until
from darkroom.playground.state import (
    Card,
    dismiss_job,
    errors_shown_here,
    errors_shown_on_top,
    show_job,
)

_REDRAW_SECONDS = 0.4
_SERVICE_SECONDS = 3.0


def show_queue(model: str, results: Sequence[Job]) -> None:
    """Draw a line with what waits and runs, how long it takes, and who serves the model."""
    st.fragment(_show_queue, run_every=_SERVICE_SECONDS)(model, results)


def _show_queue(model: str, results: Sequence[Job]) -> None:
    with errors_shown_here():
        active = [one.job for one in map(watches().follow, results) if not one.job.is_final]
        running = sum(job.state == "running" for job in active)
        queued = len(active) - running
        depth = queue_depth() or (queued, running)  # which may be older than what is known of them
        parts = [f"{max(depth[1], running):,} running", f"{max(depth[0], queued):,} queued"]
        etas = [job.eta.p50 for job in active if job.eta]
        times = [_seconds_for_each(job) for job in results if job.state == "succeeded"]
        if etas:
            parts.append(f"yours are done in about {until(max(etas))}")
        elif times and times[0]:
            parts.append(f"about {span(times[0])} for an image")
        serving = next((one.workers for one in models() if one.name == model), None)
        names = [f"{one.name} ({one.device or one.state})" for one in serving or ()]
        parts.append(f"{model} is served by {', '.join(names) or 'no worker right now'}")
        st.caption(escape(" · ".join(parts)))


def _seconds_for_each(job: Job) -> float | None:
    took = job.metrics.run_ms if job.metrics else None
    return took / 1000 / len(job.seeds) if took else None


def show_newest(results: Sequence[Job]) -> None:
    """Draw the unfinished jobs, or else the newest job's results."""
    active = [job for job in results if not job.is_final]
    # A fragment is redrawn alone, without disturbing what the user does elsewhere.
    st.fragment(_show_active, run_every=_REDRAW_SECONDS if active else None)(active)
    if results and not active:
        _show_ended(results[0])
    if not results:
        st.info(
            "Your images appear here. Describe one and press **Generate**, or look at **Prompts**.",
            icon=":material/photo_library:",
        )


def show_earlier(results: Sequence[Job]) -> None:
    """Draw the results of the jobs that `show_newest` leaves out."""
    ended = [job for job in results if job.is_final]
    earlier = ended[1:] if len(ended) == len(results) else ended
    for job in earlier:
        if job.state != "succeeded":
            _show_unsuccessful(job)
    show_small(
        [
            Card.of(image, job=job)
            for job in earlier
            if job.state == "succeeded"
            for image in job.images
        ]
    )


def _show_active(active: list[Job]) -> None:
    watched = [watches().follow(job) for job in active]
    for one in watched:
        with st.container(border=True, key=f"running-{one.job.id}"):
            _show_running(one)
    if any(one.job.is_final for one in watched):
        st.rerun()


def _show_running(watched: Watched) -> None:
    job = watched.job
    st.progress(watched.fraction, text=f"{_status(watched)} — {escape(short(job.prompt, 60))}")
    if watched.previews:
        columns = columns_for(len(job.seeds))
        with st.container(key=f"large-{columns}-{job.id}"):
            for index, seed in enumerate(job.seeds):
                st.html(_preview(watched.previews.get(index), job, seed))
    if watched.error is not None:
        with errors_shown_here():
            raise watched.error
    if watched.ended is not None and not job.is_final:
        if st.button("Dismiss", key=f"dismiss-{job.id}", on_click=dismiss_job, args=(job.id,)):
            st.rerun()
        return
    st.button(
        "Stopping …" if job.cancel_requested else "Cancel",
        key=f"cancel-{job.id}",
        icon=":material/cancel:",
        disabled=job.cancel_requested,
        on_click=_cancel,
        args=(watched,),
    )


def _preview(preview: bytes | None, job: Job, seed: int) -> str:
    """The newest step, or a place for it, where the image will be and as large."""
    shape = f"aspect-ratio: {job.width} / {job.height}"
    if preview is None:
        return f'<div class="placeholder" style="{shape}"></div>'
    # Inline: a file would be replaced before the browser has fetched it.
    data = base64.b64encode(preview).decode("ascii")
    return (
        f'<img class="preview" src="data:image/webp;base64,{data}" alt="preview" '
        f'title="seed {seed}" style="{shape}">'
    )


def _status(watched: Watched) -> str:
    job = watched.job
    if job.state == "queued":
        ahead = job.queue_position
        when = f", done in about {until(job.eta.p50)}" if job.eta else ""
        least = "at least " if job.queue_position_exact is False else ""
        return f"Waiting behind {least}{count(ahead, 'job')}{when}" if ahead else f"Waiting{when}"
    if not watched.steps:
        return "Starting"
    done = sum(step == steps for step, steps in watched.steps.values())
    index, (step, steps) = max(watched.steps.items())
    of = f"image {index + 1} of {len(job.seeds)}, " if len(job.seeds) > 1 else ""
    return "Finishing" if done == len(job.seeds) else f"{of}step {step} of {steps}".capitalize()


def _cancel(watched: Watched) -> None:
    with errors_shown_on_top():
        watched.job = connect().jobs.cancel(watched.job.id)


def _show_ended(job: Job) -> None:
    if job.state != "succeeded":
        _show_unsuccessful(job)
        return
    with st.container(key=f"ended-{job.id}"):
        st.caption(escape(short(job.prompt, 160)))
        for warning in job.warnings:
            st.warning(escape(warning.message))
        show_large([Card.of(image, job=job) for image in job.images])


def _show_unsuccessful(job: Job) -> None:
    with st.container(key=f"ended-{job.id}"):
        message = f"{explain_failure(job)}  \n:gray[{escape(short(job.prompt))}]"
        (st.error if job.state == "failed" else st.warning)(message)
        with st.container(horizontal=True):
            st.button(
                "Try again",
                key=f"retry-{job.id}",
                icon=":material/refresh:",
                on_click=_retry,
                args=(job,),
            )
            st.button(
                "Dismiss",
                key=f"dismiss-{job.id}",
                on_click=dismiss_job,
                args=(job.id,),
                type="tertiary",
            )


def _retry(job: Job) -> None:
    with errors_shown_on_top():
        show_job(connect().jobs.retry(job.id))

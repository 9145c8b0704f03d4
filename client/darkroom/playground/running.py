"""The jobs that wait or run, drawn anew twice a second on their own, and what came of others."""

import base64
from collections.abc import Sequence

import streamlit as st

from darkroom import Job
from darkroom.playground import jobs, notices, words
from darkroom.playground.cards import Picture, show_large
from darkroom.playground.connection import connect
from darkroom.playground.watching import Watched, watches

_SECONDS = 0.4
_PREVIEW = 200
"""Pixels of a preview's width."""


def show_newest(found: Sequence[Job]) -> None:
    """Draws the jobs that wait or run, or what came of the newest."""
    active = [job for job in found if not job.is_final]
    # A fragment is drawn alone: nothing that the user does elsewhere is disturbed.
    st.fragment(_show_active, run_every=_SECONDS if active else None)(active)
    if found and not active:
        _show_ended(found[0])
    if not found:
        st.info(
            "Your pictures appear here. Describe one and press **Generate**; **Ideas** helps when "
            "you have none.",
            icon=":material/photo_library:",
        )


def show_earlier(found: Sequence[Job]) -> None:
    """Draws what came of the jobs that `show_newest` leaves out."""
    ended = [job for job in found if job.is_final]
    for job in ended[1:] if len(ended) == len(found) else ended:
        _show_ended(job)


def _show_active(active: list[Job]) -> None:
    watched = [watches().follow(job) for job in active]
    for one in watched:
        with st.container(border=True, key=f"running-{one.job.id}"):
            _show_running(one)
    if any(one.job.is_final for one in watched):
        st.rerun()


def _show_running(watched: Watched) -> None:
    job = watched.job
    st.progress(
        watched.fraction, text=f"{_says(watched)} — {words.escape(words.short(job.prompt, 60))}"
    )
    previews = sorted(watched.previews.items())
    if previews:
        with st.container(horizontal=True, gap="small"):
            for index, picture in previews:
                st.html(_preview(picture, job.seeds[index]), width="content")
    if watched.error is not None:
        with notices.in_plain_words():
            raise watched.error
    if watched.ended is not None and not job.is_final:
        if st.button("Put away", key=f"away-{job.id}", on_click=jobs.put_away, args=(job.id,)):
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


def _preview(picture: bytes, seed: int) -> str:
    # In the page itself: as a file it would be replaced before the browser has fetched it.
    data = base64.b64encode(picture).decode("ascii")
    return (
        f'<img src="data:image/webp;base64,{data}" width="{_PREVIEW}" alt="preview" '
        f'title="seed {seed}" style="border-radius: 0.6rem">'
    )


def _says(watched: Watched) -> str:
    job = watched.job
    if job.state == "queued":
        ahead = job.queue_position
        when = f", done in about {words.until(job.eta.p50)}" if job.eta else ""
        return f"Waiting behind {words.count(ahead, 'job')}{when}" if ahead else f"Waiting{when}"
    if not watched.steps:
        return "Starting"
    done = sum(step == steps for step, steps in watched.steps.values())
    index, (step, steps) = max(watched.steps.items())
    of = f"picture {index + 1} of {len(job.seeds)}, " if len(job.seeds) > 1 else ""
    return "Finishing" if done == len(job.seeds) else f"{of}step {step} of {steps}".capitalize()


def _cancel(watched: Watched) -> None:
    with notices.kept_for_the_top():
        watched.job = connect().jobs.cancel(watched.job.id)


def _show_ended(job: Job) -> None:
    with st.container(key=f"ended-{job.id}"):
        if job.state == "succeeded":
            st.markdown(f":gray[{words.escape(words.short(job.prompt, 160))}]")
            for warning in job.warnings:
                st.warning(words.escape(warning.message))
            show_large(Picture.of_job(job))
            return
        said = f"{words.explain_failure(job)}  \n:gray[{words.escape(words.short(job.prompt))}]"
        (st.error if job.state == "failed" else st.warning)(said)
        with st.container(horizontal=True):
            st.button(
                "Try again",
                key=f"retry-{job.id}",
                icon=":material/refresh:",
                on_click=_retry,
                args=(job,),
            )
            st.button(
                "Put away",
                key=f"away-{job.id}",
                on_click=jobs.put_away,
                args=(job.id,),
                type="tertiary",
            )


def _retry(job: Job) -> None:
    with notices.kept_for_the_top():
        jobs.replace(connect().jobs.retry(job.id))

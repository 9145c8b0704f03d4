"""Which jobs the Generate tab shows: those of this session, found again after a reload."""

from typing import Any

import streamlit as st

import darkroom
from darkroom.playground import form, notices, session
from darkroom.playground.connection import connect
from darkroom.playground.watching import watches

MOST_SHOWN = 6
_LOOKED_THROUGH = 100
"""Newest jobs of the session among which those that are no batch's are looked for."""
_STATE = "jobs"


def shown(session_id: str) -> list[darkroom.Job]:
    """The jobs to show, newest first; those that have not ended are followed from now on."""
    known = _known(session_id)
    for id_, job in known.items():
        if not job.is_final:
            known[id_] = watches().follow(job).job
    return sorted(known.values(), key=lambda job: job.created_at, reverse=True)[:MOST_SHOWN]


def submit(settings: dict[str, Any]) -> None:
    """Submits a job with previews and shows it; for callbacks, since it may leave a notice."""
    session_id = session.current()
    with notices.kept_for_the_top():
        job = connect().jobs.submit(**settings, session_id=session_id, previews=True).job
        _known(session_id)[job.id] = job
        st.session_state[form.SEED] = job.seeds[0]


def replace(job: darkroom.Job) -> None:
    """Shows a job as it stands now."""
    _known(session.current())[job.id] = job


def put_away(job_id: str) -> None:
    """Shows the job no longer; nothing is deleted."""
    _known(session.current()).pop(job_id, None)


def settings_of(job: darkroom.Job) -> dict[str, Any]:
    """The fields of a submission that makes the job's pictures again."""
    settings = {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "model": job.model,
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "guidance_scale": job.guidance_scale,
        "scheduler": job.scheduler,
        "init_image": job.init_image,
        "strength": job.strength,
        "resize_mode": job.resize_mode,
        "num_images": len(job.seeds),
        "seeds": list(job.seeds),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _known(session_id: str) -> dict[str, darkroom.Job]:
    """Job id → the job as last seen. The first look at a session asks the API."""
    sessions: dict[str, dict[str, darkroom.Job]] = st.session_state.setdefault(_STATE, {})
    if session_id not in sessions:
        newest = connect().jobs.list(session_id=session_id, page_size=_LOOKED_THROUGH).page().data
        own = [job for job in newest if job.batch_id is None]
        sessions[session_id] = {job.id: job for job in own[:MOST_SHOWN]}
        if own and not st.session_state.get(form.PROMPT):
            form.fill(settings_of(own[0]))
            st.session_state[form.SEED_MODE] = form.RANDOM
            form.forget_initial()  # nobody of this page has chosen it
    return sessions[session_id]

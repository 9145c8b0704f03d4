"""Throw hostile images at a running API, as uploads and inside jobs, and see what it costs."""

import base64
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2

from tests.processes import ApiProcess
from tests.unit.images.hostile import Case

ALLOWED = {
    (201, None),
    (202, None),
    (413, "body_too_large"),
    (422, "image_refused"),
    (422, "validation_failed"),
}


@dataclass(frozen=True)
class Toll:
    """What came of it."""

    answers: Counter[tuple[int, str | None]]
    """How often each status and code."""
    grown_mb: float | None
    """Peak of the API's own memory over what it had before, for a forked one has its parent's
    libraries; None where the system is not Linux, which alone tells."""

    @property
    def wrong(self) -> set[tuple[int, str | None]]:
        """Answers that are neither acceptance nor a documented refusal."""
        return set(self.answers) - ALLOWED


def throw_images(api: ApiProcess, cases: Sequence[Case], inside_every: int = 4) -> Toll:
    """All cases as multipart uploads with names that lie, some also as data: URLs inside jobs."""

    def upload(case: Case) -> httpx2.Response:
        return api.http.post("/v1/uploads", files={"file": ("fine.png", case.data, "image/png")})

    def submit(case: Case) -> httpx2.Response:
        url = "data:image/png;base64," + base64.b64encode(case.data).decode()
        return api.http.post("/v1/jobs", json={"prompt": "x", "init_image": url})

    is_measured = sys.platform == "linux"
    if is_measured:
        api.forget_peak()
        before = api.resident_bytes()
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(upload, cases), *pool.map(submit, cases[::inside_every])]
    codes = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
    return Toll(codes, (api.peak_bytes() - before) / 1e6 if is_measured else None)

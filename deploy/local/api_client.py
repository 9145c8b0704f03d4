"""The few calls by which the local stack proves itself: through the HTTP API and nothing else."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from deploy.local.errors import StackError, StopRequestedError

_POLL_SECONDS = 0.25
_DONE = {"succeeded", "failed", "canceled", "expired"}


class ApiClient:
    """Submits jobs, waits for them and saves their pictures."""

    def __init__(self, url: str, key: str, stop: threading.Event) -> None:
        """``stop`` ends every wait."""
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=30,
            trust_env=False,  # a proxy has no business on the way to this machine
        )
        self._stop = stop

    def upload(self, picture: Path) -> str:
        """Sends a picture; returns its upload id."""
        answer = self._http.post(
            "/v1/uploads", files={"file": (picture.name, picture.read_bytes())}
        )
        return str(_checked(answer)["id"])

    def generate(
        self, job: dict[str, Any], *, seconds: float, meanwhile: Callable[[], None]
    ) -> dict[str, Any]:
        """Submits a job and returns it when it has succeeded.

        ``meanwhile`` is called between polls, and may raise to end the wait.

        Raises:
            StackError: it was refused, it failed, or it took longer than ``seconds``.
            StopRequestedError: the user wants to stop.
        """
        submitted = _checked(self._http.post("/v1/jobs", json=job))
        deadline = time.monotonic() + seconds
        while True:
            found = _checked(self._http.get(f"/v1/jobs/{submitted['id']}"))
            if found["state"] in _DONE:
                break
            if time.monotonic() > deadline:
                raise StackError(
                    f"job {found['id']} is still {found['state']} after {seconds:.0f} s"
                )
            meanwhile()
            if self._stop.wait(_POLL_SECONDS):
                raise StopRequestedError
        if found["state"] != "succeeded":
            reason = (found.get("error") or {}).get("message", "no reason was given")
            raise StackError(f"job {found['id']} {found['state']}: {reason}")
        return found

    def save(self, job: dict[str, Any], path: Path) -> Path:
        """Saves the first picture of a job; returns ``path``."""
        image = job["images"][0]["id"]
        answer = self._http.get(
            f"/v1/images/{image}/content", follow_redirects=False, params={"proxy": "1"}
        )
        if answer.status_code != 200:
            raise StackError(f"GET {answer.request.url} answered {answer.status_code}")
        path.write_bytes(answer.content)
        return path

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if answer.is_success and isinstance(body, dict):
        return body
    problem = body if isinstance(body, dict) else {"detail": answer.text[:200]}
    detail = problem.get("detail") or problem.get("title") or "no reason was given"
    raise StackError(
        f"{answer.request.method} {answer.request.url.path} answered {answer.status_code}: {detail}"
    )

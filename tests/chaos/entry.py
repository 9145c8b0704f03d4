"""The trials' own way into a worker: the real one, with a cheap embedder, and faults on request.

Production code carries no switch for any of this: crash points and broken builds are wrapped
around its functions here, in a process that only a trial starts.
"""

import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from shared.gallery import statements as gallery
from shared.gallery.models import Image
from shared.jobs import statements
from shared.jobs.models import Job
from shared.logging import configure_logging
from shared.model_catalog import load_catalog
from shared.settings import Settings, get_settings

CRASH_POINTS = (
    "before_claim",
    "after_claim",
    "mid_step",
    "after_upload",
    "before_commit",
    "after_commit",
    "before_ack",
)


class CheapEmbedder:
    """Unit vectors from a hash: loading sentence-transformers takes longer than a whole trial."""

    def __init__(self, settings: Settings) -> None:
        self.model_name = "chaos"
        self._size = settings.embedding_dimensions

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text."""
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        digest = hashlib.sha512(text.encode()).digest()
        numbers = [digest[n % 64] + 1.0 for n in range(self._size)]
        length = math.sqrt(sum(number * number for number in numbers))
        return [number / length for number in numbers]


def run_worker(role: str, options: dict[str, Any]) -> None:
    """Become a worker. `options`: `crash_at` (a crash point), `broken` (a list), `clock` (s)."""
    if shift := options.get("clock"):
        _shift_clock(float(shift))
    if point := options.get("crash_at"):
        _install_crash_point(point)
    for defect in options.get("broken", ()):
        BROKEN_BUILDS[defect]()
    settings = get_settings()
    configure_logging(settings)
    if role == "cpu":
        from worker import cpu

        cpu.run_cpu_worker(settings)
    else:
        from worker import generate

        generate.Embedder = CheapEmbedder  # type: ignore[assignment,misc]
        generate.run_generate_worker(settings, [load_catalog(settings.models_file).default])


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _shift_clock(seconds: float) -> None:
    """What Python calls the wall clock is wrong by an hour; the monotonic clock never is."""
    honest = time.time
    time.time = lambda: honest() + seconds


def _install_crash_point(point: str) -> None:
    import celery.worker.request

    from worker import claiming, run_job
    from worker.engine.simulated import SimulatedBackend

    if point == "before_claim":
        _wrap(claiming, "_claim", before=_die)
    elif point == "after_claim":
        _wrap(claiming, "_claim", after=lambda job: _die() if job is not None else None)
    elif point == "mid_step":
        _wrap(SimulatedBackend, "tick", when=lambda args: any(row.step for row in args[2]))
    elif point == "after_upload":
        _wrap(run_job, "upload", after=lambda _: _die())
    elif point == "before_commit":
        _wrap(run_job, "commit", before=_die)
    elif point == "after_commit":
        _wrap(run_job, "commit", after=lambda _: _die())
    elif point == "before_ack":
        _wrap(celery.worker.request.Request, "acknowledge", before=_die)
    else:
        raise ValueError(f"no crash point is named {point}")


def _wrap(
    owner: Any,
    name: str,
    *,
    before: Callable[[], None] | None = None,
    after: Callable[[Any], None] | None = None,
    when: Callable[[tuple[Any, ...]], bool] | None = None,
) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        if when is not None and when(args):
            _die()
        result = original(*args, **kwargs)
        if after is not None:
            after(result)
        return result

    setattr(owner, name, wrapped)


# --- Builds that are broken on purpose, to see whether the checker bites -------------------------


def _without_fencing() -> None:
    """Whoever commits last wins, as where `complete` is an UPDATE by id alone."""
    from sqlalchemy import update
    from sqlalchemy.dialects.postgresql import insert

    statements._held = lambda job_id, _: update(Job).where(Job.id == job_id)

    def overwrite(images: Sequence[dict[str, Any]]) -> Any:
        statement = insert(Image).values(images)
        return statement.on_conflict_do_update(
            index_elements=[Image.job_id, Image.index],
            set_={name: statement.excluded[name] for name in ("id", "attempt", "s3_key", "sha256")},
        )

    gallery.insert_images = overwrite  # type: ignore[assignment]


def _with_no_dispatcher() -> None:
    """Nobody looks after leases and lost messages."""
    from worker.dispatcher import Dispatcher

    Dispatcher._round = lambda _: None  # type: ignore[method-assign]


def _with_early_acknowledgement() -> None:
    """The job is called done before its pictures are where they belong."""
    from worker import run_job

    later: list[Callable[[], None]] = []
    upload, commit = run_job.upload, run_job.commit

    def put_off(*args: Any) -> None:
        later.append(lambda: upload(*args))

    def commit_first(*args: Any, **kwargs: Any) -> Job:
        done = commit(*args, **kwargs)
        time.sleep(0.2)
        while later:
            later.pop()()
        return done

    run_job.upload, run_job.commit = put_off, commit_first


BROKEN_BUILDS: dict[str, Callable[[], None]] = {
    "no fencing": _without_fencing,
    "no dispatcher": _with_no_dispatcher,
    "early ack": _with_early_acknowledgement,
}

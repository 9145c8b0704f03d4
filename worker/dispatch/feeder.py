"""Feed bulk jobs to their queues: a few at a time, each key its share, from the leading dispatcher.

What is in Redis cannot be reordered, so only as much is there as keeps the workers busy until the
next look; everything else waits in the ledger, where turns, priorities and pauses still count.
The feeder remembers only hints. A second one, a restart or a lost message costs repetition, never
a job: a message for a job that needs none finds nothing to claim.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import feeding
from shared.fleet import roster
from shared.logging import get_logger
from shared.queue import names
from shared.queue.publish import publish_jobs
from shared.queue.reading import job_of
from worker.dispatch.batch_ends import BatchEnds
from worker.dispatch.fair_turns import FairTurns, Source

log = get_logger(__name__)

_BUSY_SECONDS = 0.05
"""Between looks while bulk work waits; at 2,000 jobs a second 100 end meanwhile."""
_IDLE_SECONDS = 0.5
"""Between looks while there is none: how long a new batch waits at most."""
_REFRESH_SECONDS = 0.25
"""How old the list of batches, their pauses and priorities may be."""
_ROSTER_SECONDS = 2.0
_SWEEP_SECONDS = 2.0
_AHEAD_SECONDS = 0.5
"""How much work, by the recent rate, is put into Redis ahead of the workers."""
_MIN_DEPTH = 8
_MAX_DEPTH = 1_000
_LOADED_AT_ONCE = 250
_END = UUID(int=(1 << 128) - 1)
"""Behind every job."""
_ON_ITS_WAY_SECONDS = 5.0
"""A job fed this lately and not yet claimed is not taken for lost."""


class BulkFeeder:
    """The thread that feeds while its process leads."""

    def __init__(
        self,
        database: sessionmaker[Session],
        client: "redis.Redis",
        app: Celery,
        leads: Callable[[], bool],
    ) -> None:
        self._database = database
        self._redis = client
        self._app = app
        self._leads = leads
        self._ends = BatchEnds(database, app)
        self._forget()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the look in progress."""
        self._closing.set()
        self._thread.join(timeout=10)

    def _forget(self) -> None:
        """Another process may have led meanwhile."""
        self._turns: dict[str, FairTurns] = {}
        self._flow: dict[str, _Flow] = {}
        self._fed: dict[UUID, float] = {}
        self._rows: dict[str, int] = {}
        self._refreshed = self._swept = self._asked_roster = -math.inf
        self._cold = True

    def _run(self) -> None:
        while not self._closing.is_set():
            pause = _IDLE_SECONDS
            try:
                if not self._leads():
                    self._forget()
                elif self.feed():
                    pause = _BUSY_SECONDS
            except (SQLAlchemyError, redis.RedisError, KombuError, OSError) as error:
                log.warning("feeding_interrupted", error=type(error).__name__)
                self._forget()
            except Exception:
                log.exception("feeding_failed")
                self._forget()
            self._closing.wait(pause)

    def feed(self) -> bool:
        """One look; whether bulk work waits.

        Raises:
            SQLAlchemyError: the ledger cannot be reached.
            redis.RedisError: Redis cannot be reached.
        """
        now = time.monotonic()
        if now - self._refreshed >= _REFRESH_SECONDS:
            self._ends.settle()
            self._refresh()
            self._refreshed = now
        if not self._turns:
            return False
        if now - self._asked_roster >= _ROSTER_SECONDS:
            self._rows = self._ask_roster()
            self._asked_roster = now
        if now - self._swept >= _SWEEP_SECONDS:
            self._sweep(now)
            self._swept = now
        for model, turns in self._turns.items():
            self._fill(model, turns, now)
        return True

    def _refresh(self) -> None:
        """Take over which batches there are, whose they are, and who goes first."""
        with self._database.begin() as session:
            feedable = session.execute(feeding.list_feedable()).all()
        by_model: dict[str, list[Source]] = {}
        for batch_id, key, models, priority in feedable:
            for model in models:
                by_model.setdefault(model, []).append(Source(batch_id, key, priority))
        if not by_model:
            self._fed.clear()
        for model in self._turns.keys() - by_model.keys():
            del self._turns[model]
        for model, sources in by_model.items():
            self._turns.setdefault(model, FairTurns()).update(sources)
        if self._cold:
            # What the leader before has fed is still on its way.
            self._fed = dict.fromkeys(self._in_redis(by_model), time.monotonic())
            self._cold = False

    def _fill(self, model: str, turns: FairTurns, now: float) -> None:
        queue = names.generate_queue(model, names.BULK)
        depth = int(self._redis.llen(queue))
        flow = self._flow.setdefault(model, _Flow())
        flow.looked(depth, now)
        target = self._target(model, flow)
        if depth > target / 2:
            return
        chosen: list[UUID] = []
        while len(chosen) < target - depth:
            source = turns.next_source(lambda source: self._load(model, source))
            if source is None:
                break
            chosen.append(turns.take(source))
        if chosen:
            publish_jobs(self._app, chosen, model, names.BULK)
            self._fed.update(dict.fromkeys(chosen, now))
            flow.fed(len(chosen))

    def _target(self, model: str, flow: "_Flow") -> int:
        busy = max(2 * self._rows.get(model, 0), math.ceil(flow.per_second * _AHEAD_SECONDS))
        return min(max(busy, _MIN_DEPTH), _MAX_DEPTH)

    def _load(self, model: str, source: Source) -> None:
        """Read the next jobs of a batch from the ledger, if there are any."""
        if source.is_exhausted:
            return
        with self._database.begin() as session:
            rows = session.execute(
                feeding.list_to_feed(source.batch_id, model, _LOADED_AT_ONCE, source.position)
            ).all()
        source.is_exhausted = len(rows) < _LOADED_AT_ONCE
        # What was not due yet lies behind, too, once the end is reached: `_sweep` will find it.
        source.position = _END if source.is_exhausted else rows[-1][0]
        source.waiting.extend((row[0], row[1]) for row in rows if row[0] not in self._fed)

    def _sweep(self, now: float) -> None:
        """Feed again what was passed by and is due: retried, released, or lost with Redis."""
        self._fed = {job: at for job, at in self._fed.items() if now - at < _ON_ITS_WAY_SECONDS}
        behind: list[tuple[str, Source, UUID, int]] = []
        with self._database.begin() as session:
            for model, turns in self._turns.items():
                for source in turns.sources():
                    if source.position is None:
                        continue
                    waiting = {job for job, _ in source.waiting}
                    for job, cost in session.execute(
                        feeding.list_left_behind(
                            source.batch_id, model, _MAX_DEPTH, source.position
                        )
                    ):
                        if job not in waiting and job not in self._fed:
                            behind.append((model, source, job, cost))
        if not behind:
            return
        in_redis = self._in_redis(model for model, *_ in behind)
        for _, source, job, cost in behind:
            if job not in in_redis:
                source.waiting.append((job, cost))

    def _in_redis(self, models: Iterable[str]) -> set[UUID]:
        """The jobs whose messages wait in the bulk queues or are in workers' hands."""
        messages: list[bytes | str] = []
        for model in set(models):
            messages += self._redis.lrange(names.generate_queue(model, names.BULK), 0, -1)
        found = {job_of(message) for message in messages}
        found |= {job_of(entry, in_hand=True) for entry in self._redis.hvals(names.UNACKED)}
        return {job for job in found if job is not None}

    def _ask_roster(self) -> dict[str, int]:
        """Rows of the live workers of each model."""
        rows: dict[str, int] = {}
        for worker in roster.read(self._redis):
            for model in worker.models:
                rows[model.name] = rows.get(model.name, 0) + (model.rows or 1)
        return rows


class _Flow:
    """How fast a queue is emptied, measured where it is filled."""

    def __init__(self) -> None:
        self.per_second = 0.0
        self._since: float | None = None
        self._held = 0
        """Messages in the queue after the last look."""

    def looked(self, depth: int, now: float) -> None:
        """The queue is this deep now."""
        if self._since is not None and now > self._since:
            rate = max(self._held - depth, 0) / (now - self._since)
            # Quick to rise, slow to fall: an empty queue costs more than a full one.
            weight = 0.5 if rate > self.per_second else 0.05
            self.per_second += weight * (rate - self.per_second)
        self._since, self._held = now, depth

    def fed(self, count: int) -> None:
        """So many were added."""
        self._held += count

"""Feed bulk jobs to their queues: a few at a time, each key its share, its batches in turn.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over API keys: a key's clock advances by the
cost of what it was given, and the key whose clock is furthest behind is next. With jobs of equal
cost that is a plain round.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

import redis
from celery import Celery
from kombu.exceptions import KombuError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import bulk_queries
from shared.core import broker, worker_registry
from shared.core.broker import job_of, publish_jobs
from shared.core.logging import get_logger
from worker.maintenance.periodic import BatchEnds


@dataclass(eq=False)
class Source:
    """A batch's jobs of one model, as far as they were read from the ledger."""

    batch_id: UUID
    key: str
    priority: int
    position: UUID | None = None
    """The last job that was read; those behind it were fed or are waiting here."""
    is_exhausted: bool = False
    """Nothing lies beyond the position."""
    waiting: deque[tuple[UUID, int]] = field(default_factory=deque)
    """(job, cost) in the order of feeding."""
    last_turn: int = 0


class FairTurns:
    """The batches that want to be fed with jobs of one model."""

    def __init__(self) -> None:
        self._sources: dict[UUID, Source] = {}
        self._by_key: dict[str, list[Source]] = {}
        self._clocks: dict[str, float] = {}
        self._turn = 0

    def update(self, sources: Iterable[Source]) -> None:
        """Take over which batches there are; those known keep their place."""
        wanted = {source.batch_id: source for source in sources}
        for batch_id in self._sources.keys() - wanted.keys():
            del self._sources[batch_id]
        for batch_id, source in wanted.items():
            known = self._sources.setdefault(batch_id, source)
            known.priority = source.priority
        self._by_key = {}
        for source in self._sources.values():
            self._by_key.setdefault(source.key, []).append(source)
        self._clocks = {key: at for key, at in self._clocks.items() if key in self._by_key}
        # Who comes new starts even with those who are there: no credit for having been away.
        start = min(self._clocks.values(), default=0.0)
        for key in self._by_key.keys() - self._clocks.keys():
            self._clocks[key] = start

    def sources(self) -> list[Source]:
        """Every batch there is."""
        return list(self._sources.values())

    def next_source(self, load: Callable[[Source], None]) -> Source | None:
        """The batch whose turn it is; None when nothing waits. `load` may fill one that is empty.

        The key furthest behind; of its batches those of the highest priority; of these the one
        whose last turn is longest ago.
        """
        idle: list[str] = []
        for key in sorted(self._by_key, key=lambda key: (self._clocks[key], key)):
            for source in sorted(self._by_key[key], key=lambda s: (-s.priority, s.last_turn)):
                if not source.waiting:
                    load(source)
                if source.waiting:
                    self._let_catch_up(idle, self._clocks[key])
                    return source
            idle.append(key)
        return None

    def take(self, source: Source) -> UUID:
        """Its next job; its key has had its turn."""
        job, cost = source.waiting.popleft()
        self._clocks[source.key] += max(cost, 1)
        self._turn += 1
        source.last_turn = self._turn
        return job

    def _let_catch_up(self, idle: list[str], clock: float) -> None:
        """A key with nothing to feed saves no credit for later."""
        for key in idle:
            self._clocks[key] = max(self._clocks[key], clock)


# What is in Redis cannot be reordered, so only as much is there as keeps the workers busy until
# the next look; everything else waits in the ledger, where turns, priorities and pauses still
# count. The feeder remembers only hints. A second one, a restart or a lost message costs
# repetition, never a job: a message for a job that needs none finds nothing to claim.

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
            feedable = session.execute(bulk_queries.list_feedable()).all()
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
        queue = broker.generate_queue(model, broker.BULK)
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
            publish_jobs(self._app, chosen, model, broker.BULK)
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
                bulk_queries.list_to_feed(source.batch_id, model, _LOADED_AT_ONCE, source.position)
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
                        bulk_queries.list_left_behind(
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
            messages += self._redis.lrange(broker.generate_queue(model, broker.BULK), 0, -1)
        found = {job_of(message) for message in messages}
        found |= {job_of(entry, in_hand=True) for entry in self._redis.hvals(broker.UNACKED)}
        return {job for job in found if job is not None}

    def _ask_roster(self) -> dict[str, int]:
        """Rows of the live workers of each model."""
        rows: dict[str, int] = {}
        for worker in worker_registry.read(self._redis):
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

"""Enqueue bulk jobs: a few at a time, each key its share, its batches in turn.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over API keys: a key's clock advances by the
cost of what it was given, and the key whose clock is furthest behind is next. With jobs of equal
cost that is a plain round.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from uuid import UUID

import redis
from celery import Celery
from sqlalchemy.orm import Session, sessionmaker

from shared.batches import lifecycle
from shared.core import broker, worker_registry
from shared.core.broker import job_message, job_of, publish_jobs
from shared.core.database import autocommit
from worker.core.loop import LeaderLoop
from worker.maintenance.recovery import BatchLifecycle


@dataclass(eq=False)
class BatchSource:
    """A batch's jobs of one model, as far as they were read from the database."""

    batch_id: UUID
    key: str
    priority: int
    position: UUID | None = None
    """The last job that was read; those behind it were enqueued or wait here."""
    is_exhausted: bool = False
    """Nothing lies beyond the position."""
    waiting: deque[tuple[UUID, int]] = field(default_factory=deque)
    """(job, cost) in the order of enqueuing."""
    last_turn: int = 0


class FairQueue:
    """The batches with jobs of one model to enqueue."""

    def __init__(self) -> None:
        self._sources: dict[UUID, BatchSource] = {}
        self._by_key: dict[str, list[BatchSource]] = {}
        self._clocks: dict[str, float] = {}
        self._turn = 0

    def update(self, sources: Iterable[BatchSource]) -> None:
        """Replace the batches; those already known keep their place."""
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

    def sources(self) -> list[BatchSource]:
        return list(self._sources.values())

    def next_source(self, load: Callable[[BatchSource], None]) -> BatchSource | None:
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

    def take(self, source: BatchSource) -> UUID:
        """Its next job; its key has had its turn."""
        job, cost = source.waiting.popleft()
        self._clocks[source.key] += max(cost, 1)
        self._turn += 1
        source.last_turn = self._turn
        return job

    def _let_catch_up(self, idle: list[str], clock: float) -> None:
        """A key with nothing to enqueue earns no credit for later."""
        for key in idle:
            self._clocks[key] = max(self._clocks[key], clock)


# What is in Redis cannot be reordered, so only as much is there as keeps the workers busy until
# the next poll; everything else waits in the database, where turns, priorities and pauses still
# count. What the enqueuer remembers may be wrong. A second one, a restart or a lost message costs
# repetition, never a job: a message for a job that needs none finds nothing to claim.

_BUSY_SECONDS = 0.05
"""Between polls while bulk work waits; at 2,000 jobs a second 100 end meanwhile."""

_IDLE_SECONDS = 0.5
"""Between polls while there is none: how long a new batch waits at most."""

_REFRESH_SECONDS = 0.25
"""How old the list of batches, their pauses and priorities may be."""

_ROWS_SECONDS = 2.0
_SWEEP_SECONDS = 2.0

_AHEAD_SECONDS = 0.5
"""How much work, by the recent rate, is put into Redis ahead of the workers."""

_MIN_DEPTH = 8
_MAX_DEPTH = 1_000
_LOADED_AT_ONCE = 250

_END = UUID(int=(1 << 128) - 1)
"""Behind every job."""

_ON_ITS_WAY_SECONDS = 5.0
"""A job enqueued this lately and not yet claimed is not taken for lost."""


class BulkEnqueuer(LeaderLoop):
    """Enqueues bulk jobs while its process leads."""

    def __init__(
        self,
        database: sessionmaker[Session],
        client: "redis.Redis",
        app: Celery,
        is_leader: Callable[[], bool],
    ) -> None:
        super().__init__("bulk-enqueuer", _IDLE_SECONDS, is_leader, join=10)
        self._database = database
        self._redis = client
        self._app = app
        self._lifecycle = BatchLifecycle(database, client, app)
        self.reset()

    def reset(self) -> None:
        """Another process may have led meanwhile."""
        self._fair_queue: dict[str, FairQueue] = {}
        self._flow: dict[str, _Flow] = {}
        self._enqueued: dict[UUID, float] = {}
        self._rows: dict[str, int] = {}
        self._refreshed = self._swept = self._counted_rows = -math.inf
        self._cold = True

    def lead(self) -> float:
        """Enqueue what fits; look again soon while bulk work waits."""
        return _BUSY_SECONDS if self.enqueue() else _IDLE_SECONDS

    def failed(self, error: Exception) -> float | None:
        """What is remembered of Redis may be wrong now."""
        self.reset()
        return super().failed(error)

    def enqueue(self) -> bool:
        """Poll once; whether bulk work waits.

        Raises:
            SQLAlchemyError: the database cannot be reached.
            redis.RedisError: Redis cannot be reached.
        """
        now = time.monotonic()
        if now - self._refreshed >= _REFRESH_SECONDS:
            if not self._fair_queue and not self._has_batches():
                self._enqueued.clear()
                return False
            self._lifecycle.advance()
            self._refresh()
            self._refreshed = now
        if not self._fair_queue:
            return False
        if now - self._counted_rows >= _ROWS_SECONDS:
            self._rows = self._count_rows()
            self._counted_rows = now
        if now - self._swept >= _SWEEP_SECONDS:
            self._sweep(now)
            self._swept = now
        for model, fair_queue in self._fair_queue.items():
            self._fill(model, fair_queue, now)
        return True

    def _has_batches(self) -> bool:
        """One round trip twice a second for a system without batches."""
        with autocommit(self._database) as session:
            return bool(session.scalar(lifecycle.has_unfinished()))

    def _refresh(self) -> None:
        """Take over which batches there are, whose they are, and who goes first."""
        with self._database.begin() as session:
            enqueueable = session.execute(lifecycle.list_enqueueable()).all()
        by_model: dict[str, list[BatchSource]] = {}
        for batch_id, key, models, priority in enqueueable:
            for model in models:
                by_model.setdefault(model, []).append(BatchSource(batch_id, key, priority))
        if not by_model:
            self._enqueued.clear()
        for model in self._fair_queue.keys() - by_model.keys():
            del self._fair_queue[model]
        for model, sources in by_model.items():
            self._fair_queue.setdefault(model, FairQueue()).update(sources)
        if self._cold:
            # What the leader before has enqueued is still on its way.
            self._enqueued = dict.fromkeys(self._in_redis(by_model), time.monotonic())
            self._cold = False

    def _fill(self, model: str, fair_queue: FairQueue, now: float) -> None:
        queue = broker.generate_queue(model, broker.BULK)
        depth = int(self._redis.llen(queue))
        flow = self._flow.setdefault(model, _Flow())
        flow.observe(depth, now)
        target = self._target(model, flow)
        if depth > target / 2:
            return
        chosen: list[UUID] = []
        while len(chosen) < target - depth:
            source = fair_queue.next_source(lambda source: self._load(model, source))
            if source is None:
                break
            chosen.append(fair_queue.take(source))
        if chosen:
            publish_jobs(self._app, (job_message(job, model, broker.BULK) for job in chosen))
            self._enqueued.update(dict.fromkeys(chosen, now))
            flow.filled(len(chosen))

    def _target(self, model: str, flow: "_Flow") -> int:
        busy = max(2 * self._rows.get(model, 0), math.ceil(flow.per_second * _AHEAD_SECONDS))
        return min(max(busy, _MIN_DEPTH), _MAX_DEPTH)

    def _load(self, model: str, source: BatchSource) -> None:
        """Read the next jobs of a batch from the database, if there are any."""
        if source.is_exhausted:
            return
        with self._database.begin() as session:
            rows = session.execute(
                lifecycle.list_next(source.batch_id, model, _LOADED_AT_ONCE, source.position)
            ).all()
        source.is_exhausted = len(rows) < _LOADED_AT_ONCE
        # What was not due yet lies behind, too, once the end is reached: `_sweep` will find it.
        source.position = _END if source.is_exhausted else rows[-1][0]
        source.waiting.extend((row[0], row[1]) for row in rows if row[0] not in self._enqueued)

    def _sweep(self, now: float) -> None:
        """Enqueue again what was passed by and is due: retried, released, or lost with Redis."""
        self._enqueued = {
            job: at for job, at in self._enqueued.items() if now - at < _ON_ITS_WAY_SECONDS
        }
        behind: list[tuple[str, BatchSource, UUID, int]] = []
        with self._database.begin() as session:
            for model, fair_queue in self._fair_queue.items():
                for source in fair_queue.sources():
                    if source.position is None:
                        continue
                    waiting = {job for job, _ in source.waiting}
                    for job, cost in session.execute(
                        lifecycle.list_left_behind(
                            source.batch_id, model, _MAX_DEPTH, source.position
                        )
                    ):
                        if job not in waiting and job not in self._enqueued:
                            behind.append((model, source, job, cost))
        if not behind:
            return
        in_redis = self._in_redis(model for model, *_ in behind)
        for _, source, job, cost in behind:
            if job not in in_redis:
                source.waiting.append((job, cost))

    def _in_redis(self, models: Iterable[str]) -> set[UUID]:
        """The jobs whose messages wait in the bulk queues or are in flight."""
        messages: list[bytes | str] = []
        for model in set(models):
            messages += self._redis.lrange(broker.generate_queue(model, broker.BULK), 0, -1)
        jobs = {job_of(message) for message in messages}
        jobs |= {job_of(entry, in_flight=True) for entry in self._redis.hvals(broker.UNACKED)}
        return {job for job in jobs if job is not None}

    def _count_rows(self) -> dict[str, int]:
        """Rows of the live workers of each model."""
        rows: dict[str, int] = {}
        for worker in worker_registry.list_workers(self._redis):
            for model in worker.models:
                rows[model.name] = rows.get(model.name, 0) + (model.batch_size or 1)
        return rows


class _Flow:
    """How fast a queue is emptied, measured where it is filled."""

    def __init__(self) -> None:
        self.per_second = 0.0
        self._since: float | None = None
        self._held = 0
        """Messages in the queue at the last poll."""

    def observe(self, depth: int, now: float) -> None:
        """The queue is this deep now."""
        if self._since is not None and now > self._since:
            rate = max(self._held - depth, 0) / (now - self._since)
            # Quick to rise, slow to fall: an empty queue costs more than a full one.
            weight = 0.5 if rate > self.per_second else 0.05
            self.per_second += weight * (rate - self.per_second)
        self._since, self._held = now, depth

    def filled(self, count: int) -> None:
        self._held += count

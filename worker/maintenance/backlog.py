"""What waits in the database, measured by the leading dispatcher for the whole system.

The database is asked, not Redis: there only a portion of bulk work waits, and after a loss nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session, sessionmaker

from shared.admin import queries as admin_queries
from shared.core import broker
from shared.core.model_catalog import ModelCatalog
from worker.core.metrics import Families
from worker.maintenance.leader import periodic

_EVERY = timedelta(seconds=5)

_SHARE = 0.05
"""Of its time the leader spends at most this on measuring: a million waiting jobs take a while to
count."""

_STALE_SECONDS = 120.0
"""Numbers of a leader that cannot measure any more are not shown for longer."""


@dataclass
class _Measured:
    at: float
    took: float
    waiting: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    """(model, queue_class) -> (jobs, age of the oldest in seconds)."""
    running: dict[str, int] = field(default_factory=dict)
    deliveries: int = 0
    oldest_delivery: float = 0.0


class BacklogMetrics(Collector):
    """The latest measurement of the process that leads; the others show none."""

    def __init__(
        self,
        catalog: ModelCatalog,
        database: sessionmaker[Session],
        is_leader: Callable[[], bool] = lambda: True,
    ) -> None:
        self._models = [spec.name for spec in catalog.model]
        self._database = database
        self.is_leader = is_leader
        self._measured: _Measured | None = None

    @periodic(every=_EVERY)
    def measure_backlog(self) -> None:
        """Ask the database, unless that took so long lately that it would become a load."""
        now = time.monotonic()
        last = self._measured
        if last is not None and now - last.at < last.took / _SHARE:
            return
        measured = _Measured(at=now, took=0.0)
        with self._database.begin() as session:
            for model, queue_class, count, age in session.execute(admin_queries.count_waiting()):
                measured.waiting[model, queue_class] = count, float(age)
            for model, _, count in session.execute(admin_queries.count_running()):
                measured.running[model] = measured.running.get(model, 0) + count
            pending, age = session.execute(admin_queries.count_deliveries()).one()
            measured.deliveries, measured.oldest_delivery = pending, float(age)
        measured.took = time.monotonic() - now
        self._measured = measured

    def describe(self) -> Iterable[Metric]:
        """Every family, without numbers."""
        return _Families().all

    def collect(self) -> Iterator[Metric]:
        """Numbers only from the leader: there is one truth."""
        measured = self._measured
        families = _Families()
        if measured is not None and self.is_leader():
            since = time.monotonic() - measured.at
            if since < max(_STALE_SECONDS, 2 * measured.took / _SHARE):
                self._fill(families, measured, since)
        yield from families.all

    def _fill(self, families: "_Families", measured: _Measured, since: float) -> None:
        for model in sorted({*self._models, *(model for model, _ in measured.waiting)}):
            for queue_class in broker.QUEUE_CLASSES:
                count, age = measured.waiting.get((model, queue_class), (0, 0.0))
                families.jobs.add_metric([model, queue_class], count)
                families.age.add_metric([model, queue_class], age + since if count else 0.0)
            families.running.add_metric([model], measured.running.get(model, 0))
        families.deliveries.add_metric([], measured.deliveries)
        age = measured.oldest_delivery
        families.delivery_age.add_metric([], age + since if age else 0.0)


class _Families(Families):
    def __init__(self) -> None:
        self.jobs = GaugeMetricFamily(
            "darkroom_queue_jobs",
            "Jobs that wait and may run: not those of paused batches or before their next attempt.",
            labels=["model", "queue_class"],
        )
        self.age = GaugeMetricFamily(
            "darkroom_queue_oldest_age_seconds",
            "Age of the oldest waiting job, since its submission or its last failure.",
            labels=["model", "queue_class"],
        )
        self.running = GaugeMetricFamily(
            "darkroom_jobs_running", "Running jobs, by the database.", labels=["model"]
        )
        self.deliveries = GaugeMetricFamily(
            "darkroom_webhook_deliveries_due",
            "Webhook deliveries that are due and not being sent.",
            labels=[],
        )
        self.delivery_age = GaugeMetricFamily(
            "darkroom_webhook_oldest_due_age_seconds",
            "Age of the oldest due delivery.",
            labels=[],
        )

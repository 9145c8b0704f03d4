"""The worker of tests that wait for what it looks at now and then: it looks more often.

How often it looks is what it costs at rest, and no part of what these tests are about.
`python -m tests.quick_worker …` stands for `python -m worker …`.
"""

import os
import runpy
from datetime import timedelta

from worker.maintenance import bulk_enqueuer, estimator
from worker.maintenance.backlog import BacklogMetrics


def be_quick() -> None:
    """Look more often, in this process."""
    os.environ.setdefault("DARKROOM_DISPATCH_INTERVAL", "PT0.4S")
    bulk_enqueuer._IDLE_SECONDS = 0.1
    bulk_enqueuer._REFRESH_SECONDS = 0.05
    bulk_enqueuer._SWEEP_SECONDS = 0.5
    estimator._PAUSE_SECONDS = 0.2
    BacklogMetrics.measure_backlog.__dict__["periodic"]["every"] = timedelta(0)


if __name__ == "__main__":
    be_quick()
    runpy.run_module("worker", run_name="__main__", alter_sys=True)

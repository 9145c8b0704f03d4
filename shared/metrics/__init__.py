"""Metrics for Prometheus: what the API and the workers both count, and how it is served.

The rule of labels: only what the operator has written down himself (models, duties, routes) or what
the code lists (lanes, outcomes, error codes). Never a tenant, a key, a job, a URL or a text, so
that nobody's data is shown and the number of series stays what it is on the first day.

What only one side counts stands there: `api.metrics`, `worker.metrics`.
"""

from prometheus_client import disable_created_metrics

# A second series for every counter and histogram, which no dashboard uses.
disable_created_metrics()  # type: ignore[no-untyped-call]

"""The four dashboards: overview, queue, workers, API and webhooks."""

from deploy.grafana.model import Dashboard, Line, Panel, Row

_RATE = "[$__rate_interval]"


def _rate(metric: str, by: str, selector: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{selector}{_RATE}))"


def _quantile(of: float, metric: str, by: str = "", selector: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    rates = f"sum by ({labels}) (rate({metric}_bucket{selector}{_RATE}))"
    return f"histogram_quantile({of}, {rates})"


_DEPTH = Panel(
    "Jobs waiting",
    "short",
    [Line("max by (model, lane) (darkroom_queue_jobs)", "{{model}} {{lane}}")],
    help="Due and not yet claimed, by the ledger.",
    stacked=True,
)
_AGE = Panel(
    "Oldest waiting job",
    "s",
    [Line("max by (model, lane) (darkroom_queue_oldest_age_seconds)", "{{model}} {{lane}}")],
    help="Bulk work may wait; interactive work should not.",
)
_WAIT = Panel(
    "Wait until the first claim",
    "s",
    [
        Line(_quantile(0.5, "darkroom_job_wait_seconds", "lane"), "{{lane}} p50"),
        Line(_quantile(0.95, "darkroom_job_wait_seconds", "lane"), "{{lane}} p95"),
    ],
)
_FAILURES = Panel(
    "Failed attempts by cause",
    "ops",
    [Line(_rate("darkroom_job_failures_total", "code"), "{{code}}")],
    stacked=True,
)

OVERVIEW = Dashboard(
    "darkroom-overview",
    "Darkroom: overview",
    "Is it well, and what is it doing? Each row leads to a page of its own.",
    [
        Row(
            "Now",
            [
                Panel(
                    "Workers that make pictures",
                    "none",
                    [Line('sum(darkroom_worker_state{state=~"ready|busy"})')],
                    width=4,
                    now=True,
                ),
                Panel(
                    "Jobs waiting",
                    "short",
                    [Line("sum(max by (model, lane) (darkroom_queue_jobs))")],
                    width=4,
                    now=True,
                ),
                Panel(
                    "Oldest interactive job",
                    "s",
                    [Line('max(darkroom_queue_oldest_age_seconds{lane="interactive"})')],
                    width=4,
                    now=True,
                    alarming=60,
                ),
                Panel(
                    "Images a minute",
                    "short",
                    [Line("60 * sum(rate(darkroom_images_total[5m]))")],
                    width=4,
                    now=True,
                ),
                Panel(
                    "Failed attempts",
                    "percentunit",
                    [
                        Line(
                            'sum(rate(darkroom_job_run_seconds_count{outcome="failed"}[15m]))'
                            " / sum(rate(darkroom_job_run_seconds_count[15m]))"
                        )
                    ],
                    width=4,
                    now=True,
                    alarming=0.05,
                ),
                Panel(
                    "Dispatchers",
                    "none",
                    [Line("sum(darkroom_dispatcher_leads)")],
                    help="One, always.",
                    width=4,
                    now=True,
                ),
            ],
        ),
        Row(
            "Jobs",
            [
                Panel(
                    "Submitted and ended",
                    "ops",
                    [
                        Line(_rate("darkroom_jobs_submitted_total", "lane"), "{{lane}} submitted"),
                        Line(_rate("darkroom_job_run_seconds_count", "outcome"), "{{outcome}}"),
                    ],
                ),
                _DEPTH,
                _AGE,
                _WAIT,
                Panel(
                    "Run time p95",
                    "s",
                    [Line(_quantile(0.95, "darkroom_job_run_seconds", "model"), "{{model}}")],
                ),
                _FAILURES,
            ],
        ),
        Row(
            "Capacity",
            [
                Panel(
                    "GPU busy",
                    "percentunit",
                    [Line("sum by (instance) (rate(darkroom_gpu_seconds_total[5m]))")],
                    help="Device seconds a second of each worker.",
                ),
                Panel(
                    "Images a second",
                    "ops",
                    [Line(_rate("darkroom_images_total", "model"), "{{model}}")],
                    stacked=True,
                ),
                Panel(
                    "API latency p99",
                    "s",
                    [
                        Line(
                            _quantile(0.99, "darkroom_http_request_seconds", "method"), "{{method}}"
                        )
                    ],
                ),
            ],
        ),
    ],
)

QUEUE = Dashboard(
    "darkroom-queue",
    "Darkroom: queue and dispatcher",
    "What waits, for how long, and whether the dispatcher puts right what it should.",
    [
        Row(
            "Queue",
            [
                _DEPTH,
                _AGE,
                Panel(
                    "Jobs running",
                    "short",
                    [Line("max by (model) (darkroom_jobs_running)", "{{model}}")],
                    stacked=True,
                ),
                _WAIT,
                Panel(
                    "Submitted",
                    "ops",
                    [
                        Line(
                            _rate("darkroom_jobs_submitted_total", "model, lane"),
                            "{{model}} {{lane}}",
                        )
                    ],
                ),
                Panel(
                    "Leases lost",
                    "ops",
                    [Line(_rate("darkroom_leases_lost_total", "model"), "{{model}}")],
                    help="Each is a worker that was killed, frozen or cut off with a job in hand.",
                ),
            ],
        ),
        Row(
            "Estimates",
            [
                Panel(
                    "Jobs done by their estimate",
                    "percentunit",
                    [Line("max by (quantile) (darkroom_eta_coverage_ratio)", "{{quantile}}")],
                    help="Perfect is the quantile itself: half of them by p50, nine in ten by p90.",
                ),
                Panel(
                    "Error of the estimate",
                    "percentunit",
                    [Line("max(darkroom_eta_relative_error_ratio)", "median")],
                ),
                Panel(
                    "Actual over estimated time",
                    "none",
                    [
                        Line(_quantile(0.5, "darkroom_eta_actual_to_estimated_ratio"), "p50"),
                        Line(_quantile(0.9, "darkroom_eta_actual_to_estimated_ratio"), "p90"),
                    ],
                ),
            ],
        ),
        Row(
            "Dispatcher",
            [
                Panel(
                    "Who leads",
                    "none",
                    [Line("darkroom_dispatcher_leads", "{{instance}}")],
                ),
                Panel(
                    "Since each duty was last done",
                    "s",
                    [
                        Line(
                            "time() - max by (duty) (darkroom_duty_last_success_timestamp_seconds)",
                            "{{duty}}",
                        )
                    ],
                    help="Some duties are done every ten minutes, some hourly.",
                ),
                Panel(
                    "Duty p95",
                    "s",
                    [Line(_quantile(0.95, "darkroom_duty_seconds", "duty"), "{{duty}}")],
                ),
                Panel(
                    "Rows changed by duties",
                    "ops",
                    [Line(_rate("darkroom_duty_rows_total", "duty"), "{{duty}}")],
                ),
                Panel(
                    "Failed duties",
                    "ops",
                    [Line(_rate("darkroom_duty_failures_total", "duty"), "{{duty}}")],
                ),
            ],
        ),
    ],
)

WORKERS = Dashboard(
    "darkroom-workers",
    "Darkroom: workers and engines",
    "What the GPUs do with their time, how full their batches are, and what goes wrong.",
    [
        Row(
            "Workers",
            [
                Panel(
                    "States", "none", [Line("sum by (state) (darkroom_worker_state)", "{{state}}")]
                ),
                Panel("Jobs in hand", "short", [Line("darkroom_worker_jobs", "{{instance}}")]),
                _FAILURES,
            ],
        ),
        Row(
            "Engine",
            [
                Panel(
                    "GPU busy",
                    "percentunit",
                    [
                        Line(
                            "sum by (instance, model) (rate(darkroom_gpu_seconds_total[5m]))",
                            "{{instance}} {{model}}",
                        )
                    ],
                ),
                Panel(
                    "Batch size",
                    "short",
                    [
                        Line(
                            _rate("darkroom_engine_rows_total", "model", '{kind="live"}')
                            + " / "
                            + _rate("darkroom_engine_ticks_total", "model"),
                            "{{model}}",
                        ),
                        Line("max by (model) (darkroom_engine_batch_rows)", "{{model}} full"),
                    ],
                    help="Live rows of a tick, on average.",
                ),
                Panel(
                    "Padding",
                    "percentunit",
                    [
                        Line(
                            _rate("darkroom_engine_rows_total", "model", '{kind="padding"}')
                            + " / "
                            + _rate("darkroom_engine_rows_total", "model"),
                            "{{model}}",
                        )
                    ],
                    help="The share of all rows that is computed for nobody.",
                ),
                Panel(
                    "Steps by lane",
                    "ops",
                    [
                        Line(
                            _rate("darkroom_engine_steps_total", "model, lane"),
                            "{{model}} {{lane}}",
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "Bulk rows that made way",
                    "ops",
                    [Line(_rate("darkroom_engine_pauses_total", "model"), "{{model}}")],
                ),
                Panel(
                    "Images taken back",
                    "ops",
                    [Line(_rate("darkroom_engine_images_canceled_total", "model"), "{{model}}")],
                ),
            ],
        ),
        Row(
            "Memory and models",
            [
                Panel(
                    "Memory of the device",
                    "bytes",
                    [
                        Line(
                            "max by (instance, device, kind) (darkroom_device_memory_bytes)",
                            "{{instance}} {{device}} {{kind}}",
                        )
                    ],
                ),
                Panel(
                    "Batches made smaller for want of memory",
                    "ops",
                    [Line(_rate("darkroom_engine_memory_shrinks_total", "model"), "{{model}}")],
                ),
                Panel(
                    "Loading and warming up",
                    "s",
                    [
                        Line(
                            "sum by (model, phase) (darkroom_model_load_seconds_sum)"
                            " / sum by (model, phase) (darkroom_model_load_seconds_count)",
                            "{{model}} {{phase}}",
                        )
                    ],
                    help="The average over all workers since their start.",
                ),
            ],
        ),
        Row(
            "From pixels to the ledger",
            [
                Panel(
                    "Run time",
                    "s",
                    [
                        Line(_quantile(0.5, "darkroom_job_run_seconds", "model"), "{{model}} p50"),
                        Line(_quantile(0.95, "darkroom_job_run_seconds", "model"), "{{model}} p95"),
                    ],
                ),
                Panel(
                    "S3 p95",
                    "s",
                    [Line(_quantile(0.95, "darkroom_s3_request_seconds", "operation"))],
                ),
                Panel(
                    "Errors of S3 and Postgres",
                    "ops",
                    [
                        Line(
                            _rate("darkroom_s3_errors_total", "operation, kind"),
                            "S3 {{operation}} {{kind}}",
                        ),
                        Line(_rate("darkroom_database_errors_total", "kind"), "Postgres {{kind}}"),
                    ],
                ),
            ],
        ),
    ],
)

API = Dashboard(
    "darkroom-api",
    "Darkroom: API and webhooks",
    "What clients see: answers, refusals, latency, search, and whether they are told.",
    [
        Row(
            "Requests",
            [
                Panel(
                    "Requests by status",
                    "reqps",
                    [Line(_rate("darkroom_http_requests_total", "status"), "{{status}}")],
                    stacked=True,
                ),
                Panel(
                    "Latency p99 by route",
                    "s",
                    [
                        Line(
                            _quantile(0.99, "darkroom_http_request_seconds", "method, route"),
                            "{{method}} {{route}}",
                        )
                    ],
                ),
                Panel(
                    "Problems",
                    "reqps",
                    [Line(_rate("darkroom_http_problems_total", "code"), "{{code}}")],
                    stacked=True,
                ),
                Panel(
                    "Search p95",
                    "s",
                    [Line(_quantile(0.95, "darkroom_search_seconds", "stage"), "{{stage}}")],
                ),
                Panel(
                    "Errors of Postgres and Redis",
                    "ops",
                    [
                        Line(_rate("darkroom_database_errors_total", "kind"), "Postgres {{kind}}"),
                        Line(f"sum(rate(darkroom_redis_errors_total{_RATE}))", "Redis"),
                    ],
                ),
            ],
        ),
        Row(
            "Webhooks",
            [
                Panel(
                    "Attempts by outcome",
                    "ops",
                    [Line(_rate("darkroom_webhook_attempts_total", "outcome"), "{{outcome}}")],
                    stacked=True,
                ),
                Panel(
                    "Errors",
                    "ops",
                    [
                        Line(
                            _rate("darkroom_webhook_attempts_total", "code", '{code!="none"}'),
                            "{{code}}",
                        )
                    ],
                ),
                Panel(
                    "Receivers' latency",
                    "s",
                    [
                        Line(_quantile(0.5, "darkroom_webhook_attempt_seconds"), "p50"),
                        Line(_quantile(0.95, "darkroom_webhook_attempt_seconds"), "p95"),
                    ],
                ),
                Panel(
                    "Deliveries due", "short", [Line("max(darkroom_webhook_deliveries_due)", "due")]
                ),
                Panel(
                    "Oldest due delivery",
                    "s",
                    [Line("max(darkroom_webhook_oldest_due_age_seconds)", "age")],
                ),
            ],
        ),
    ],
)

DASHBOARDS = (OVERVIEW, QUEUE, WORKERS, API)

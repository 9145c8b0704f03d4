"""Every alert fires when it should and not before, by Prometheus's own tool."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import PROJECT
from tests.unit.deploy.chart import PREFIX, rendered

ALERTS = PROJECT / "deploy" / "prometheus" / "alerts.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool on PATH; it comes with Prometheus"
)


_DONE = "darkroom_periodic_task_last_success_timestamp_seconds"
_EXPIRES = "darkroom_signing_certificate_expires_timestamp_seconds"


@dataclass(frozen=True)
class Case:
    """Series by the minute, in promtool's notation, and when an alert follows from them."""

    series: dict[str, str]
    quiet: int
    """A minute at which it does not fire."""
    fires: int
    """A minute at which it does, and only for `labels`."""
    labels: dict[str, str]


CASES = {
    "DarkroomInteractiveJobsWait": Case(
        {
            'darkroom_queue_oldest_age_seconds{model="demo",queue_class="interactive"}': (
                "10x3 130+10x20"
            ),
            'darkroom_queue_oldest_age_seconds{model="demo",queue_class="bulk"}': "5000x30",
        },
        8,
        12,
        {"model": "demo"},
    ),
    "DarkroomNoWorkerForModel": Case(
        {
            'darkroom_queue_jobs{model="demo",queue_class="bulk"}': "3x40",
            'darkroom_queue_jobs{model="sdxl",queue_class="bulk"}': "2x40",
            'darkroom_queue_jobs{model="idle",queue_class="bulk"}': "0x40",
            'darkroom_engine_batch_size{instance="g",model="demo"}': "8x40",
        },
        14,
        16,
        {"model": "sdxl"},
    ),
    "DarkroomJobsFail": Case(
        {
            'darkroom_job_run_seconds_count{model="demo",outcome="failed"}': "0x20 0+2x40",
            'darkroom_job_run_seconds_count{model="demo",outcome="succeeded"}': "0+8x60",
            'darkroom_job_run_seconds_count{model="good",outcome="succeeded"}': "0+8x60",
        },
        20,
        50,
        {"model": "demo"},
    ),
    "DarkroomLeasesLost": Case(
        {
            'darkroom_leases_lost_total{model="demo"}': "0x5 4x30",
            'darkroom_leases_lost_total{model="well"}': "0x40",
        },
        5,
        12,
        {"model": "demo"},
    ),
    "DarkroomNoDispatcher": Case(
        {
            'darkroom_dispatcher_leads{instance="a"}': "1x5 0x10",
            'darkroom_dispatcher_leads{instance="b"}': "0x9 1x7",
        },
        7,
        9,
        {},
    ),
    "DarkroomPeriodicTaskNotDone": Case(
        {
            # The gauge of one that led once is old; the leader's counts.
            f'{_DONE}{{instance="a",task="expire_leases"}}': ("0x30"),
            f'{_DONE}{{instance="b",task="expire_leases"}}': ("0+60x30"),
            f'{_DONE}{{instance="b",task="publish_lost"}}': ("0+60x5 300x25"),
        },
        7,
        15,
        {"task": "publish_lost"},
    ),
    "DarkroomPeriodicTaskFails": Case(
        {'darkroom_periodic_task_failures_total{task="cleanup"}': "0x5 0+1x30"},
        5,
        20,
        {"task": "cleanup"},
    ),
    "DarkroomWorkerFaulty": Case(
        {
            'darkroom_worker_state{instance="g",state="faulty"}': "_x5 1x10",
            'darkroom_worker_state{instance="h",state="busy"}': "1x15",
        },
        5,
        8,
        {"instance": "g"},
    ),
    "DarkroomBatchesShrink": Case(
        {'darkroom_engine_memory_shrinks_total{model="demo"}': "0x5 1x10"}, 5, 8, {"model": "demo"}
    ),
    "DarkroomSigningCertificateExpires": Case(
        {
            f'{_EXPIRES}{{instance="g"}}': f"{14 * 86400 + 600}x30",
            f'{_EXPIRES}{{instance="has no certificate"}}': "0x30",
        },
        10,
        11,
        {"instance": "g"},
    ),
    "DarkroomApiDown": Case(
        {
            'darkroom_http_requests_total{status="503"}': "0x5 stale",
            'up{job="darkroom-api",instance="a"}': "1x5 0x15",
        },
        6,
        9,
        {},
    ),
    "DarkroomProcessDown": Case(
        {
            'up{job="images/studio-darkroom-api",instance="a"}': "1x5 0x20",
            'up{job="images/studio-darkroom-api",instance="b"}': "1x30",
            'up{job="node",instance="c"}': "0x30",
        },
        9,
        12,
        {"job": "images/studio-darkroom-api", "instance": "a"},
    ),
    "DarkroomApiErrors": Case(
        {
            'darkroom_http_requests_total{status="503"}': "0x10 0+5x30",
            'darkroom_http_requests_total{status="202"}': "0x10 0+95x30",
        },
        9,
        25,
        {},
    ),
    "DarkroomSubmissionsSlow": Case(
        {
            'darkroom_http_request_seconds_bucket{method="POST",route="/v1/jobs",le="0.5"}': (
                "0+100x20 2000+90x40"
            ),
            'darkroom_http_request_seconds_bucket{method="POST",route="/v1/jobs",le="1"}': (
                "0+100x60"
            ),
            'darkroom_http_request_seconds_bucket{method="POST",route="/v1/jobs",le="+Inf"}': (
                "0+100x60"
            ),
        },
        20,
        40,
        {},
    ),
    "DarkroomSearchSlow": Case(
        {
            'darkroom_search_seconds_bucket{stage="whole",le="1"}': "0+100x20 2000+80x40",
            'darkroom_search_seconds_bucket{stage="whole",le="2.5"}': "0+100x60",
            'darkroom_search_seconds_bucket{stage="whole",le="+Inf"}': "0+100x60",
        },
        20,
        50,
        {},
    ),
    "DarkroomPostgresErrors": Case(
        {
            'darkroom_database_errors_total{kind="connection"}': "0x10 0+30x30",
            'darkroom_database_errors_total{kind="conflict"}': "0+90x40",
        },
        10,
        25,
        {},
    ),
    "DarkroomRedisErrors": Case({"darkroom_redis_errors_total": "0x10 0+30x30"}, 10, 25, {}),
    "DarkroomS3Errors": Case(
        {
            'darkroom_s3_errors_total{operation="PutObject",kind="refused"}': "0x10 0+30x30",
            'darkroom_s3_errors_total{operation="GetObject",kind="missing"}': "0+30x40",
        },
        10,
        25,
        {"kind": "refused"},
    ),
    "DarkroomBackupLate": Case(
        {
            # Its process has ended.
            "darkroom_backup_last_success_timestamp_seconds": "0x10 600x20",
            "darkroom_backup_started_timestamp_seconds": "0x30",
            "darkroom_backup_period_seconds": "3600x30",
        },
        185,
        195,
        {},
    ),
    "DarkroomWebhooksLate": Case(
        {"darkroom_webhook_oldest_due_age_seconds": "0x5 301x20"}, 5, 15, {}
    ),
    "DarkroomWebhooksFail": Case(
        {
            'darkroom_webhook_attempts_total{outcome="delivered"}': "0+10x30 300+1x90",
            'darkroom_webhook_attempts_total{outcome="try_again"}': "0+1x30 30+9x90",
        },
        30,
        110,
        {},
    ),
}


@needs_promtool
def test_prometheus_reads_the_rules_and_its_configuration() -> None:
    configuration = PROJECT / "deploy" / "docker" / "prometheus.yml"
    for arguments in (
        ("rules", "--lint=all", "--lint-fatal", str(ALERTS)),
        ("config", "--syntax-only", str(configuration)),
    ):
        done = subprocess.run(
            [str(PROMTOOL), "check", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    assert set(CASES) == {rule["alert"] for rule in _rules()}


@needs_promtool
def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path / "alerts.yaml")
    tests = [_test(rule, CASES[rule["alert"]]) for rule in _rules()]
    _promtool(tmp_path, {"rule_files": ["alerts.yaml"], "tests": tests})


@needs_promtool
def test_a_first_backup_may_take_two_periods(tmp_path: Path) -> None:
    """Counted from the first start: one that is killed again and again is late, too."""
    shutil.copy(ALERTS, tmp_path / "alerts.yaml")
    series = {}
    for instance, begun in (("a", 200), ("b", 300)):
        values = {"last_success_timestamp": 0, "started_timestamp": 60 * begun, "period": 3600}
        for metric, value in values.items():
            labelled = f'darkroom_backup_{metric}_seconds{{instance="{instance}"}}'
            series[labelled] = f"_x{begun} {value}x100"
    [rule] = [rule for rule in _rules() if rule["alert"] == "DarkroomBackupLate"]
    test = _test(rule, Case(series, 375, 385, {}))
    _promtool(tmp_path, {"rule_files": ["alerts.yaml"], "tests": [test]})


_CRON_JOB = f'{{namespace="images",cronjob="{PREFIX}backup"}}'


@needs_promtool
@pytest.mark.parametrize(
    ("series", "since"),
    [
        ({"created": "6000x4000", "status_last_successful_time": "_x500 30000x3500"}, 500),
        ({"created": "6000x4000"}, 100),  # it has made none yet
        ({}, 0),  # nobody looks at it
    ],
)
def test_a_cron_jobs_backup_is_late_when_two_are_missing(
    series: dict[str, str], since: int, tmp_path: Path
) -> None:
    """By kube-state-metrics: nothing of its own can be scraped. `since`: a minute."""
    [rules] = [each["spec"] for each in rendered("backup") if each["kind"] == "PrometheusRule"]
    [group] = [each for each in rules["groups"] if each["name"] == "darkroom-backup-job"]
    [rule] = group["rules"]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [group]}), "utf-8")
    others = {f"kube_cronjob_created{_CRON_JOB.replace('images', 'others')}": "9000000000x4000"}
    own = {f"kube_cronjob_{name}{_CRON_JOB}": values for name, values in series.items()}
    late = since + 48 * 60 + 60  # two periods, and the alert's own hour
    test = _test(rule, Case({**others, **own}, late - 5, late + 5, {}))
    _promtool(tmp_path, {"rule_files": ["alerts.yaml"], "tests": [test]})


@needs_promtool
@pytest.mark.parametrize(
    ("jobs", "age", "workers"), [(1, 900, 1), (3, 60, 2), (40, 900, 30), (0, 0, 0)]
)
def test_waiting_asks_for_no_more_workers_than_jobs(
    jobs: int, age: int, workers: int, tmp_path: Path
) -> None:
    """The autoscaler's second question, answered by Prometheus."""
    [scaled] = [each["spec"] for each in rendered("gpu") if each["kind"] == "ScaledObject"]
    query = scaled["triggers"][1]["metadata"]["query"]
    labels = 'model="demo",queue_class="interactive"'
    test = {
        "interval": "1m",
        "input_series": _series(
            {
                f"darkroom_queue_jobs{{{labels}}}": f"{jobs}x5",
                f"darkroom_queue_oldest_age_seconds{{{labels}}}": f"{age}x5",
            }
        ),
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "3m",
                "exp_samples": [{"labels": "{}", "value": workers}],
            }
        ],
    }
    _promtool(tmp_path, {"tests": [test]})


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _test(rule: dict[str, Any], case: Case) -> dict[str, Any]:
    """What promtool is to try of an alert."""
    fires = {"eval_time": f"{case.fires}m", "exp_alerts": [_expected(rule, case.labels)]}
    moments: list[dict[str, Any]] = [{"eval_time": f"{case.quiet}m"}, fires]
    return {
        "name": rule["alert"],
        "interval": "1m",
        "input_series": _series(case.series),
        "alert_rule_test": [{"alertname": rule["alert"], **moment} for moment in moments],
    }


def _expected(rule: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    texts = {
        key: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        for key, text in rule["annotations"].items()
    }
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": texts}


def _series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": series, "values": each} for series, each in values.items()]


def _promtool(folder: Path, document: dict[str, Any]) -> None:
    (folder / "tests.yaml").write_text(yaml.safe_dump({"evaluation_interval": "1m", **document}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""What a submission costs: requests a second against no-ops of the same app, and its tail."""

from collections.abc import Iterator

from tests.bench.http_load import at_rate, prepare_post, saturate
from tests.bench.row import Row, make_row, percentile
from tests.bench.system import running_system

_CONNECTIONS = 8
_REQUESTS = 600
_REPEATS = 5
_BODY = {
    "prompt": "snowy mountains at sunset, a lake",
    "model": "null",
    "seed": 7,
    "session_id": "bench",
}


def rows() -> Iterator[Row]:
    """Rate beside no-ops and the floor, p50 alone, p99 at half of the saturated rate, memory."""
    with running_system() as system:
        api = system.api("tests.bench.noop_api:create_app")
        submit = prepare_post(api.url, "/v1/jobs", system.key, _BODY)
        bare = prepare_post(api.url, "/noop", system.key, _BODY)
        checked = prepare_post(api.url, "/noop/checked", system.key, _BODY)
        floor = prepare_post(api.url, "/noop/floor", system.key, _BODY)
        alone_api = system.api("tests.bench.noop_api:create_ungrouped_app")
        for request in (submit, bare, checked, floor):
            saturate(api.url, request, _CONNECTIONS, 100)
        saturate(alone_api.url, submit, _CONNECTIONS, 100)
        rates, to_bare, to_checked, to_floor = [], [], [], []
        to_alone, cpu_to_alone = [], []
        for _ in range(_REPEATS):
            of_bare = saturate(api.url, bare, _CONNECTIONS, _REQUESTS).rate
            began = api.cpu_seconds()
            ours = saturate(api.url, submit, _CONNECTIONS, _REQUESTS).rate
            cpu, began = api.cpu_seconds() - began, alone_api.cpu_seconds()
            to_alone.append(ours / saturate(alone_api.url, submit, _CONNECTIONS, _REQUESTS).rate)
            cpu_to_alone.append(cpu / (alone_api.cpu_seconds() - began))
            of_checked = saturate(api.url, checked, _CONNECTIONS, _REQUESTS).rate
            of_floor = saturate(api.url, floor, _CONNECTIONS, _REQUESTS).rate
            rates.append(ours)
            to_bare.append(ours / of_bare)
            to_checked.append(ours / of_checked)
            to_floor.append(ours / of_floor)
        for name, ratios, goal, what in (
            ("submissions/s", to_bare, 0.25, "no-op POST of the same app"),
            (
                "submissions/s beyond key and body",
                to_checked,
                0.25,
                "no-op POST that checks both, too",
            ),
            (
                "submissions/s beside the floor",
                to_floor,
                0.8,
                "a POST that checks both, writes a job in groups and publishes it, no more",
            ),
        ):
            yield make_row(
                name,
                ratios,
                unit="of baseline",
                goal=goal,
                better="higher",
                baseline=f"{what}; ours {percentile(rates, 0.5):.0f}/s",
            )
        yield make_row(
            "submissions/s in groups",
            to_alone,
            unit="of baseline",
            goal=1.2,
            better="higher",
            baseline="one transaction each, in a process of its own, interleaved",
        )
        yield make_row(
            "CPU of the API for a submission in groups",
            cpu_to_alone,
            unit="of baseline",
            goal=0.75,
            better="lower",
            baseline="one transaction each, in a process of its own, interleaved",
        )
        alone = [
            percentile(saturate(api.url, submit, 1, 100).latencies, 0.5) * 1000
            for _ in range(_REPEATS)
        ]
        yield make_row(
            "submit p50, one client",
            alone,
            unit="ms",
            goal=15,
            better="lower",
            baseline="none: synchronous commit",
        )
        half = percentile(rates, 0.5) / 2
        tails = [
            percentile(at_rate(api.url, submit, 4 * _CONNECTIONS, _REQUESTS, half).latencies, 0.99)
            * 1000
            for _ in range(_REPEATS)
        ]
        yield make_row(
            "submit p99 at half saturation",
            tails,
            unit="ms",
            goal=30,
            better="lower",
            baseline=f"{half:.0f} submissions/s, synchronous commit",
        )
        yield make_row(
            "memory of the API after all that",
            [api.resident_bytes() / 2**20],
            unit="MB",
            goal=150,
            better="lower",
            baseline="none: resident, one process",
        )

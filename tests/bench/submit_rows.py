"""What a submission costs: requests a second against a no-op of the same app, and its tail."""

from collections.abc import Iterator

from tests.bench.http_load import at_rate, prepare_post, saturate
from tests.bench.row import Row, make_row, percentile
from tests.bench.system import System, running_system
from tests.processes import ApiProcess, free_port

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
    """Rate as a ratio, p50 alone, p99 at half of the saturated rate."""
    with running_system() as system:
        api = _api(system)
        submit = prepare_post(api.url, "/v1/jobs", system.key, _BODY)
        noop = prepare_post(api.url, "/noop", system.key, _BODY)
        saturate(api.url, submit, _CONNECTIONS, 100)
        saturate(api.url, noop, _CONNECTIONS, 100)
        ratios, rates = [], []
        for _ in range(_REPEATS):
            bare = saturate(api.url, noop, _CONNECTIONS, _REQUESTS)
            ours = saturate(api.url, submit, _CONNECTIONS, _REQUESTS)
            ratios.append(ours.rate / bare.rate)
            rates.append(ours.rate)
        yield make_row(
            "submissions/s",
            ratios,
            unit="of baseline",
            goal=0.25,
            better="higher",
            baseline=f"no-op POST of the same app; ours {percentile(rates, 0.5):.0f}/s",
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


def _api(system: System) -> ApiProcess:
    api = ApiProcess(
        system.environment,
        free_port(),
        system.key,
        system.folder / "api.log",
        factory="tests.bench.noop_api:create_app",
    )
    return system.stack.enter_context(api)

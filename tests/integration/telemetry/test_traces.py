"""One job is one trace, from the HTTP request to the webhook, over real processes."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from shared.core.tenants import Tenant
from tests.integration.telemetry.collector import ReceivedSpan
from tests.integration.telemetry.conftest import Observed
from tests.jobs import accept
from tests.processes import wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.timeout(600)  # the first test waits for three processes to start

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"

WHOLE = {
    "POST /v1/jobs": ("darkroom-api", None),
    "accept job": ("darkroom-api", "POST /v1/jobs"),
    "publish job": ("darkroom-api", "POST /v1/jobs"),
    "run job": ("darkroom-worker-generate", "publish job"),
    "claim job": ("darkroom-worker-generate", "run job"),
    "wait for device": ("darkroom-worker-generate", "run job"),
    "generate image": ("darkroom-worker-generate", "run job"),
    "encode image": ("darkroom-worker-generate", "run job"),
    "S3 PutObject": ("darkroom-worker-generate", "run job"),
    "commit job": ("darkroom-worker-generate", "run job"),
    "deliver webhook": ("darkroom-worker-cpu", "run job"),
    "POST webhook": ("darkroom-worker-cpu", "deliver webhook"),
}
"""Span -> the process that makes it, and its parent."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def submit(observed: Observed, receiver: Receiver, **headers: str) -> dict[str, Any]:
    job = {
        "prompt": "a red house",
        "session_id": "traced",
        "model": "sim",
        "webhook": {"url": receiver.url, "events": ["job.succeeded"]},
    }
    answer = observed.api.http.post("/v1/jobs", json=job, headers={"Prefer": "wait=60", **headers})
    assert answer.status_code == 202, answer.text
    done: dict[str, Any] = answer.json()
    assert done["state"] == "succeeded"
    receiver.wait()
    return done


def trace_with(observed: Observed, trace_id: str, names: set[str]) -> list[ReceivedSpan]:
    def complete() -> list[ReceivedSpan] | None:
        spans = observed.collector.spans(trace_id)
        return spans if names <= {span.name for span in spans} else None

    spans: list[ReceivedSpan] = wait_until(complete, 60, f"the spans {sorted(names)}")
    return spans


def test_a_job_is_one_trace_from_the_request_to_the_webhook(
    observed: Observed, receiver: Receiver
) -> None:
    job = submit(observed, receiver, traceparent=f"00-{TRACE}-{CLIENT_SPAN}-01")
    spans = trace_with(observed, TRACE, set(WHOLE))
    by_id = {span.span_id: span for span in spans}
    seen = {
        span.name: (span.service, by_id[span.parent_id].name if span.parent_id in by_id else None)
        for span in spans
    }
    assert seen == WHOLE
    [first] = [span for span in spans if span.parent_id == CLIENT_SPAN]
    assert first.name == "POST /v1/jobs"
    assert first.attributes["http.response.status_code"] == 202
    assert not any(span.failed for span in spans)
    assert all(span.begin <= span.end for span in spans)
    # The image and its thumbnail, whichever thread put them.
    assert sum(span.name == "S3 PutObject" for span in spans) == 2
    [run] = [span for span in spans if span.name == "run job"]
    assert run.attributes["darkroom.attempt"] == 1
    assert run.attributes["darkroom.outcome"] == "succeeded"
    assert job["id"].startswith("job_")
    [delivered] = receiver.received
    [sent] = [span for span in spans if span.name == "POST webhook"]
    assert delivered.headers["traceparent"] == f"00-{TRACE}-{sent.span_id}-01"


def test_scrapes_and_probes_are_no_traces(observed: Observed, receiver: Receiver) -> None:
    observed.scrape(observed.api)
    for path in ("/healthz", "/readyz", "/readyz/database"):
        assert observed.api.http.get(path).status_code == 200
    submit(observed, receiver, traceparent=f"00-{TRACE[1:]}0-{CLIENT_SPAN}-01")
    trace_with(observed, f"{TRACE[1:]}0", set(WHOLE))  # whatever was before it has come, too
    told = {span.name for span in observed.collector.spans()}
    asked = ("GET /metrics", "GET /healthz", "GET /readyz")
    assert not [span for span in told if span.startswith(asked)]


def test_what_a_client_wrote_is_in_no_span(observed: Observed, receiver: Receiver) -> None:
    submit(observed, receiver, traceparent=f"00-{TRACE[::-1]}-{CLIENT_SPAN}-01")
    spans = trace_with(observed, TRACE[::-1], set(WHOLE))
    told = repr(spans)
    assert "a red house" not in told
    assert receiver.url not in told


def test_a_job_without_a_message_still_belongs_to_its_trace(observed: Observed) -> None:
    """The database keeps the context, and the message that the dispatcher makes for it has none."""
    trace_id = "1234567890abcdef1234567890abcdef"
    with observed.database.begin() as session:
        tenant = session.scalars(select(Tenant.id).where(Tenant.name == "observed")).one()
        accept(session, tenant, traceparent=f"00-{trace_id}-{CLIENT_SPAN}-01")
    spans = trace_with(observed, trace_id, {"run job", "claim job", "commit job"})
    by_name = {span.name: span for span in spans}
    assert by_name["run job"].parent_id == CLIENT_SPAN
    assert by_name["commit job"].parent_id == by_name["run job"].span_id

"""One line an event, with the ids that lead from a request to its job's attempts."""

from uuid import UUID

import pytest

from shared.core.ids import from_wire
from tests.integration.telemetry.conftest import Observed, log_events
from tests.processes import wait_until
from tests.receiver import Receiver

pytestmark = pytest.mark.timeout(600)  # the first test waits for three processes to start


def test_a_request_is_found_again_in_the_lines_of_its_job(observed: Observed) -> None:
    request_id = "a-request-of-this-test"
    with Receiver() as receiver:
        answer = observed.api.http.post(
            "/v1/jobs",
            json={
                "prompt": "a logged house",
                "session_id": "logged",
                "model": "sim",
                "webhook": {"url": receiver.url, "events": ["job.succeeded"]},
            },
            headers={"X-Request-Id": request_id, "Prefer": "wait=30"},
        )
        receiver.wait()
    job_id = str(from_wire("job", answer.json()["id"]))

    def ended() -> bool:
        return any(
            event["event"] == "job_succeeded" and event.get("job_id") == job_id
            for event in log_events(observed.generate)
        )

    wait_until(ended, what="the end of the job in the log")
    lines = [event for event in log_events(observed.generate) if event.get("job_id") == job_id]
    assert {"job_started", "job_succeeded"} <= {line["event"] for line in lines}
    for line in lines:
        assert line["request_id"] == request_id
        assert line["attempt"] == 1
        assert UUID(line["tenant_id"])
        assert len(line["trace_id"]) == 32
        assert line["level"]
        assert line["timestamp"].endswith("Z")
    trace_ids = {line["trace_id"] for line in lines}
    assert len(trace_ids) == 1
    attempts = wait_until(
        lambda: [
            event
            for event in log_events(observed.cpu)
            if event["event"] == "webhook_attempt" and event.get("trace_id") in trace_ids
        ],
        what="the webhook in the log",
    )
    assert all(event["delivery_id"].startswith("whd_") for event in attempts)


def test_every_line_of_every_process_is_an_event(observed: Observed) -> None:
    for process in (observed.api, observed.generate, observed.cpu):
        # `log_events` fails on a line that is none.
        assert all("event" in event and "level" in event for event in log_events(process))

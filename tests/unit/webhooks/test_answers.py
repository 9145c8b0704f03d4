"""What a receiver's answer means."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.core.outbound.client import OutboundResponse
from worker.webhooks.attempt import MAX_KEPT, Verdict, judge

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def response(
    status: int, headers: dict[str, str] | None = None, body: bytes = b""
) -> OutboundResponse:
    return OutboundResponse(status, headers or {}, body, False, 0.01)


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        (200, Verdict.DELIVERED, None),
        (204, Verdict.DELIVERED, None),
        (299, Verdict.DELIVERED, None),
        (301, Verdict.TRY_AGAIN, "redirected"),
        (302, Verdict.TRY_AGAIN, "redirected"),
        (304, Verdict.TRY_AGAIN, "redirected"),
        (400, Verdict.TRY_AGAIN, "http_error"),
        (404, Verdict.TRY_AGAIN, "http_error"),
        (410, Verdict.GONE, "gone"),
        (429, Verdict.TRY_AGAIN, "http_error"),
        (500, Verdict.TRY_AGAIN, "http_error"),
        (599, Verdict.TRY_AGAIN, "http_error"),
    ],
)
def test_only_2xx_is_success_and_only_410_is_the_end(
    status: int, verdict: Verdict, code: str | None
) -> None:
    outcome = judge(response(status), NOW)
    assert (outcome.verdict, outcome.error_code, outcome.status) == (verdict, code, status)


@pytest.mark.parametrize(("status", "heard"), [(429, True), (503, True), (500, False)])
def test_who_may_ask_for_patience(status: int, heard: bool) -> None:
    outcome = judge(response(status, {"retry-after": "7"}), NOW)
    assert outcome.retry_after == (timedelta(seconds=7) if heard else None)


def test_the_beginning_of_the_answer_is_kept_in_a_form_that_postgres_takes() -> None:
    kept = judge(response(500, body=b"a\0b\xff" + b"x" * 5000), NOW).response
    assert kept is not None
    assert kept.startswith("a\ufffdb\ufffdx")
    assert len(kept) == MAX_KEPT

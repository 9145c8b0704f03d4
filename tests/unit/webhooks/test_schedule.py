"""When a delivery is tried again, on a virtual clock."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from shared.core.outbound.client import OutboundResponse
from shared.webhooks.message import GAPS, JITTER, next_gap, parse_retry_after
from worker.webhooks.attempt import MAX_KEPT, Verdict, judge

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECONDS = [0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]


def attempts_of_a_dead_receiver(jitter: float) -> list[datetime]:
    """The times of all attempts at a receiver that always fails, by a clock that only we move."""
    clock, times = NOW, [NOW]
    while (gap := next_gap(len(times), jitter)) is not None:
        clock += gap
        times.append(clock)
    return times


def test_ten_attempts_at_exactly_the_promised_times() -> None:
    times = attempts_of_a_dead_receiver(jitter=0)
    gaps = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert [0, *gaps] == SECONDS
    assert len(times) == len(GAPS) == 10
    assert times[-1] - times[0] == timedelta(hours=75, minutes=35, seconds=5)


@pytest.mark.parametrize("jitter", [-1.0, -0.3, 0.4, 1.0])
def test_jitter_moves_each_gap_by_its_share(jitter: float) -> None:
    times = attempts_of_a_dead_receiver(jitter)
    for index, (before, after) in enumerate(pairwise(times), start=1):
        gap = (after - before).total_seconds()
        assert gap == pytest.approx(SECONDS[index] * (1 + JITTER * jitter))
        assert SECONDS[index] * 0.9 <= gap + 1e-6
        assert gap <= SECONDS[index] * 1.1 + 1e-6


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("99999999999999999999", 10**8),
        ("Sun, 01 Mar 2026 12:02:00 GMT", 120),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("Sun, 01 Mar 2026 12:02:00 -0000", 120),  # UTC of an unknown place
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("٣", None),
    ],
)
def test_both_forms_of_retry_after(value: str | None, seconds: int | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert parse_retry_after(value, NOW) == expected


# --- What a receiver's answer means ---


ANSWERED_AT = datetime(2026, 3, 1, tzinfo=UTC)


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
    outcome = judge(response(status), ANSWERED_AT)
    assert (outcome.verdict, outcome.error_code, outcome.status) == (verdict, code, status)


@pytest.mark.parametrize(("status", "heard"), [(429, True), (503, True), (500, False)])
def test_who_may_ask_for_patience(status: int, heard: bool) -> None:
    outcome = judge(response(status, {"retry-after": "7"}), ANSWERED_AT)
    assert outcome.retry_after == (timedelta(seconds=7) if heard else None)


def test_the_beginning_of_the_answer_is_kept_in_a_form_that_postgres_takes() -> None:
    kept = judge(response(500, body=b"a\0b\xff" + b"x" * 5000), ANSWERED_AT).response
    assert kept is not None
    assert kept.startswith("a\ufffdb\ufffdx")
    assert len(kept) == MAX_KEPT

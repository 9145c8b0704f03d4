"""How a batch ends follows from how its jobs ended."""

import pytest

from shared.batches.state import ACTIVE_STATES, TERMINAL_STATES, BatchState, end_state


@pytest.mark.parametrize(
    ("counts", "skipped", "canceled", "state"),
    [
        ({"succeeded": 3}, 0, False, "succeeded"),
        ({"succeeded": 3}, 1, False, "partial"),
        ({"succeeded": 3, "failed": 1}, 0, False, "partial"),
        ({"succeeded": 3, "canceled": 1}, 0, False, "partial"),
        ({"succeeded": 3, "canceled": 1}, 0, True, "canceled"),
        ({"succeeded": 3}, 0, True, "succeeded"),
        ({"failed": 1, "expired": 5}, 0, False, "failed"),
        ({"expired": 5}, 0, False, "expired"),
        ({"canceled": 5}, 0, False, "canceled"),
        ({"canceled": 5}, 0, True, "canceled"),
    ],
)
def test_end_states(counts: dict[str, int], skipped: int, canceled: bool, state: str) -> None:
    ended = end_state(counts, skipped_lines=skipped, cancel_requested=canceled)
    assert ended == state
    assert ended in TERMINAL_STATES


def test_every_state_has_its_place() -> None:
    assert set(BatchState) == TERMINAL_STATES | ACTIVE_STATES | {BatchState.VALIDATING}

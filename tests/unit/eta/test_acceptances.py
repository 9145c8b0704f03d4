"""What a process has accepted since the last snapshot, added up as it comes."""

import pytest

from api.jobs import estimates
from api.jobs.estimates import Acceptances


def test_what_a_snapshot_has_counted_is_forgotten() -> None:
    accepted = Acceptances()
    for at in range(10):
        accepted.add(float(at), images=2, cost=100.0)
    accepted.forget_until(6.0)
    assert (accepted.images, accepted.cost) == (6, 300.0)
    accepted.forget_until(99.0)
    assert (accepted.images, accepted.cost) == (0, 0.0)


def test_without_snapshots_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "_REMEMBERED", 3)
    accepted = Acceptances()
    for at in range(10):
        accepted.add(float(at), images=1, cost=10.0)
    assert (accepted.images, accepted.cost) == (3, 30.0)

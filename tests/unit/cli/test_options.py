"""What people type: times, pairs, and what the shell completes."""

from datetime import UTC, datetime, timedelta

import pytest
import typer

from darkroom.cli import batches, options
from darkroom.cli.words import ago, size, span


@pytest.mark.parametrize(("text", "back"), [("90m", 1.5), ("36h", 36), ("7d", 168)])
def test_times_may_be_ages(text: str, back: float) -> None:
    distance = datetime.now(UTC) - options.moment(text)
    assert abs(distance - timedelta(hours=back)) < timedelta(minutes=1)


def test_times_without_a_zone_are_local() -> None:
    assert options.moment("2026-11-22T10:00") == datetime(2026, 11, 22, 10).astimezone()
    assert options.moment("2026-11-22T10:00+00:00") == datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "", "h", "-3h", "2026-13-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        options.moment(text)


def test_pairs_have_a_name() -> None:
    assert options.pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for text in ("a", "=1", ""):
        with pytest.raises(typer.BadParameter):
            options.pair(text)


def test_completion_without_a_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARKROOM_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DARKROOM_API_KEY", "drk_none")
    assert options.complete_model("") == []
    assert options.complete_job("job_") == []


def test_amounts_read_well() -> None:
    assert [span(each) for each in (0.0123, 3.21, 59, 600, 7300, 3e6)] == [
        "12 ms",
        "3.2 s",
        "59 s",
        "10 min",
        "2.0 h",
        "35 days",
    ]
    assert [size(each) for each in (12, 1_234, 5_600_000, 78_000_000_000)] == [
        "12 B",
        "1.2 kB",
        "5.6 MB",
        "78.0 GB",
    ]
    assert ago(datetime.now(UTC) + timedelta(minutes=5, seconds=1)) == "in 5 min"
    assert ago(None) == ""


def test_a_column_may_be_several_fields_or_none() -> None:
    mapped = batches._columns(["sku=custom_id", "sku=metadata.sku", "model="])
    assert mapped == {"sku": ["custom_id", "metadata.sku"], "model": None}

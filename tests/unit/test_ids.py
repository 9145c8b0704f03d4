"""Typed ids: round trips, order, and what is refused."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.core.ids import MalformedId, from_wire, new_id, to_wire


@given(st.uuids())
def test_an_id_survives_the_wire(value: UUID) -> None:
    text = to_wire("job", value)
    assert len(text) == len("job_") + 26
    assert from_wire("job", text) == value


@given(st.uuids(), st.uuids())
def test_wire_ids_sort_as_their_uuids(first: UUID, second: UUID) -> None:
    assert (to_wire("img", first) < to_wire("img", second)) == (first < second)


def test_ids_are_uuid_version_7() -> None:
    assert new_id().version == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "job_",
        "img_01jd0000000000000000000000",
        "job_01JD0000000000000000000000",
        "job_81jd0000000000000000000000",
        "job_01jd000000000000000000000",
        "job_01jd0000000000000000000000\n",
        "job_01jd00000000000000000000il",
        "job_01jd000000000000000000000é",
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(MalformedId):
        from_wire("job", text)

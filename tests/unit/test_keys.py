"""API keys: form, checksum, comparison, redaction."""

import re
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.core.ids import MalformedId, decode_id, encode_id, new_id
from shared.core.keys import matches, new_key, parse_key, redact

# Fixed for all time: keys already handed out must keep their meaning.
KNOWN = "drk_0123456789AB_abcdefghijklmnopqrstuvwxyz00u9Zwr"


def test_a_new_key_parses_and_matches_its_own_hash_only() -> None:
    ours, other = new_key(), new_key()
    parsed = parse_key(ours.key)

    assert parsed is not None
    assert parsed.id == ours.id
    assert matches(ours.secret_hash, parsed)
    assert not matches(other.secret_hash, parsed)
    assert not matches(None, parsed)


def test_the_form_is_what_the_documentation_says() -> None:
    assert re.fullmatch(r"drk_[0-9A-Za-z]{12}_[0-9A-Za-z]{33}", new_key().key)
    assert len({new_key().key for _ in range(1000)}) == 1000


def test_a_key_made_by_the_first_release_still_parses() -> None:
    parsed = parse_key(KNOWN)

    assert parsed is not None
    assert parsed.id == "0123456789AB"
    assert parsed.secret_hash.hex().startswith("f2b1a4084622c980")


def test_a_secret_does_not_parse_under_another_id() -> None:
    secret = new_key().key.rsplit("_", 1)[1]
    assert parse_key(f"drk_{new_key().id}_{secret}") is None


@given(st.integers(0, 49), st.sampled_from("0123456789ABCXYZabcxyz_ -é\n"))
def test_any_one_wrong_character_is_caught_before_the_database_is_asked(
    position: int, character: str
) -> None:
    wrong = KNOWN[:position] + character + KNOWN[position + 1 :]
    assert (parse_key(wrong) is None) == (wrong != KNOWN)


@pytest.mark.parametrize(
    "text",
    ["", "drk_", "drk__", KNOWN[:-1], KNOWN + "0", KNOWN + "\n", " " + KNOWN, "Bearer " + KNOWN,
     KNOWN.upper(), KNOWN.replace("0", "٠"), "drk_" + "x" * 100_000],
)  # fmt: skip
def test_anything_else_is_no_key(text: str) -> None:
    assert parse_key(text) is None


@given(st.text())
def test_no_text_makes_the_parser_or_the_redaction_fail(text: str) -> None:
    assert parse_key(text) is None
    assert isinstance(redact(text), str)


@pytest.mark.parametrize(
    "frame",
    ["{}", "Authorization: Bearer {}", '{{"key": "{}"}}', "GET /v1/jobs?api_key={}&x=1",
     "key={};", "{}\n{}", "({})", "drk_{}"],
)  # fmt: skip
def test_redaction_masks_the_secret_and_keeps_the_id(frame: str) -> None:
    key = new_key()
    secret = key.key.rsplit("_", 1)[1]

    masked = redact(frame.format(key.key, key.key))

    assert secret not in masked
    assert secret[:8] not in masked
    assert "[redacted]" in masked
    if frame != "drk_{}":
        assert key.id in masked


@pytest.mark.parametrize("cut", [10, 20, 30, 32])
def test_redaction_masks_damaged_keys_too(cut: int) -> None:
    key = new_key()
    secret = key.key.rsplit("_", 1)[1]

    assert secret[:10] not in redact(f"saw {key.key[: 17 + cut]} …")
    assert secret not in redact(f"saw {key.key.replace('_' + secret, secret)}")
    assert secret.lower() not in redact(f"saw {key.key.lower()}")


def test_redaction_leaves_other_text_alone() -> None:
    text = "drk_ is the prefix; job_0198c5 of drk_sessions ran in 3.2 s"
    assert redact(text) == text


def test_neither_a_key_nor_its_hash_shows_in_a_repr() -> None:
    key = new_key()
    parsed = parse_key(key.key)

    for shown in (repr(key), repr(parsed), f"{key}", f"{parsed}"):
        assert key.key.rsplit("_", 1)[1] not in shown
        assert repr(key.secret_hash) not in shown


# --- Typed ids: round trips, order, and what is refused ---


@given(st.uuids())
def test_an_id_survives_the_wire(value: UUID) -> None:
    text = encode_id("job", value)
    assert len(text) == len("job_") + 26
    assert decode_id("job", text) == value


@given(st.uuids(), st.uuids())
def test_wire_ids_sort_as_their_uuids(first: UUID, second: UUID) -> None:
    assert (encode_id("img", first) < encode_id("img", second)) == (first < second)


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
        decode_id("job", text)

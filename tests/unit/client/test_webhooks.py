"""`darkroom.webhooks.verify`: what Darkroom signs, and everything that could pass for it."""

import builtins
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from darkroom import ConfigurationError, InvalidWebhookSignatureError
from darkroom.webhooks import verify
from shared.webhooks.message import (
    SigningKey,
    new_secret,
    public_key_text,
    secret_text,
    signed_headers,
)

EVENT = {"id": "evt_1", "type": "job.failed", "timestamp": "2026-01-31T12:00:00Z", "data": {}}
BODY = json.dumps(EVENT).encode()
KEY = new_secret()
SECRET, PUBLIC = secret_text(KEY), public_key_text(KEY)


def signed(body: bytes = BODY, *keys: SigningKey, ago: timedelta = timedelta(0)) -> dict[str, str]:
    return signed_headers("evt_1", datetime.now(UTC) - ago, body, keys or [SigningKey("v1", KEY)])


def test_what_is_signed_is_the_event() -> None:
    event = verify(BODY, signed(), SECRET)
    assert (event.id, event.type, event.data) == ("evt_1", "job.failed", {})
    assert event.timestamp == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_one_of_several_signatures_or_secrets_is_enough() -> None:
    other = SigningKey("v1", new_secret())
    both = signed(BODY, other, SigningKey("v1a", new_secret()), SigningKey("v1", KEY))
    assert verify(BODY, both, SECRET)
    assert verify(BODY, signed(), [secret_text(new_secret()), SECRET])


def test_public_keys() -> None:
    headers = signed(BODY, SigningKey("v1a", new_secret()), SigningKey("v1a", KEY))
    assert verify(BODY, headers, PUBLIC)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(BODY, signed(), PUBLIC)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(BODY, headers, SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(BODY.replace(b"evt_1", b"evt_2"), headers, PUBLIC)


def test_names_of_headers_in_any_case() -> None:
    assert verify(BODY, {name.upper(): value for name, value in signed().items()}, SECRET)


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,äöü"},
        {"webhook-signature": "v1,!!!!"},
        {"webhook-signature": "v1,a,b"},
        {"webhook-signature": "v1a,abcd v1"},
        {"webhook-id": "evt_2"},
        {"webhook-id": ""},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "nan"},
        {"webhook-timestamp": "1e9"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "²"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-timestamp": "99999999999"},
    ],
)
@pytest.mark.parametrize("secret", [SECRET, PUBLIC], ids=["v1", "v1a"])
def test_damaged_headers_are_one_exception(changed: Mapping[str, str], secret: str) -> None:
    with pytest.raises(InvalidWebhookSignatureError):
        verify(BODY, {**signed(), **changed}, secret)
    with pytest.raises(InvalidWebhookSignatureError):
        verify(BODY, {}, secret)


@pytest.mark.parametrize("ago", [timedelta(minutes=6), timedelta(minutes=-6)])
def test_a_repeated_or_early_request_is_refused(ago: timedelta) -> None:
    with pytest.raises(InvalidWebhookSignatureError, match="old"):
        verify(BODY, signed(ago=ago), SECRET)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[]", b'{"id": "evt_1"}', b"null"])
def test_a_body_that_is_no_event_is_refused_even_if_signed(body: bytes) -> None:
    headers = signed()
    with pytest.raises(InvalidWebhookSignatureError):
        verify(body, headers, SECRET)
    if body and body.isascii():
        with pytest.raises(InvalidWebhookSignatureError, match="event"):
            verify(body, signed(body), SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", "whpk_", "whpk_YWJj", "whpk_!"])
def test_a_secret_that_is_none_is_the_owners_mistake(secret: str) -> None:
    with pytest.raises(ConfigurationError):
        verify(BODY, signed(), secret)


def test_without_the_extra_v1a_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return really(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match="ed25519"):
        verify(BODY, signed(), PUBLIC)
    assert verify(BODY, signed(), SECRET)

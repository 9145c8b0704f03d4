"""Signatures, verified by the Standard Webhooks libraries and by the ed25519 primitive itself."""

import base64
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks import Webhook, WebhookVerificationError

from shared.webhooks.message import (
    SigningKey,
    new_secret,
    public_key_text,
    secret_text,
    signed_headers,
)

BODY = '{"type":"job.succeeded","data":{"prompt":"ein Häuschen 🏠"}}'.encode()


def headers(*keys: SigningKey, moment: datetime | None = None) -> dict[str, str]:
    return signed_headers("evt_1", moment or datetime.now(UTC), BODY, keys)


def test_the_library_accepts_a_v1_signature() -> None:
    secret = new_secret()
    text = secret_text(secret)
    assert text.startswith("whsec_")
    assert len(base64.b64decode(text.removeprefix("whsec_"))) == 32
    sent = headers(SigningKey("v1", secret))
    assert Webhook(text).verify(BODY, sent)["type"] == "job.succeeded"
    with pytest.raises(WebhookVerificationError):
        Webhook(text).verify(BODY + b" ", sent)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_text(new_secret())).verify(BODY, sent)


def test_during_a_rotation_both_secrets_verify() -> None:
    new, old = new_secret(), new_secret()
    sent = headers(SigningKey("v1", new), SigningKey("v1", old))
    assert len(sent["webhook-signature"].split(" ")) == 2
    Webhook(secret_text(new)).verify(BODY, sent)
    Webhook(secret_text(old)).verify(BODY, sent)


def test_a_time_with_another_offset_is_the_same_time() -> None:
    key = SigningKey("v1", new_secret())
    moment = datetime.now(UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert headers(key, moment=elsewhere) == headers(key, moment=moment)


def test_a_v1a_signature_verifies_with_the_public_key() -> None:
    secret = new_secret()
    sent = headers(SigningKey("v1a", secret))
    version, signature = sent["webhook-signature"].split(",")
    text = public_key_text(secret)
    assert (version, text[:5]) == ("v1a", "whpk_")
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix("whpk_")))
    signed = f"evt_1.{sent['webhook-timestamp']}.".encode() + BODY
    public.verify(base64.b64decode(signature), signed)
    with pytest.raises(InvalidSignature):
        public.verify(base64.b64decode(signature), signed + b" ")


def test_a_v1_receiver_ignores_a_v1a_signature() -> None:
    shared, private = new_secret(), new_secret()
    sent = headers(SigningKey("v1a", private), SigningKey("v1", shared))
    Webhook(secret_text(shared)).verify(BODY, sent)


def test_keys_do_not_show_in_logs() -> None:
    secret = new_secret()
    assert repr(secret) not in repr(SigningKey("v1", secret))


NODE = """
const { Webhook } = require("standardwebhooks");
const [secret, id, timestamp, signature, body] = process.argv.slice(1);
const message = new Webhook(secret).verify(body, {
  "webhook-id": id,
  "webhook-timestamp": timestamp,
  "webhook-signature": signature,
});
console.log(message.type);
"""


@pytest.mark.long
def test_the_node_library_accepts_a_v1_signature() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    probe = [node, "-e", 'require("standardwebhooks")']
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("node has no package standardwebhooks; set NODE_PATH to where it is installed")
    secret = new_secret()
    sent = headers(SigningKey("v1", secret))
    arguments = [secret_text(secret), *sent.values(), BODY.decode()]
    done = subprocess.run(
        [node, "-e", NODE, *arguments], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "job.succeeded"

"""What signing does with certificates that expire, files that C2PA refuses, and odd signers."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import REGISTRY
from pydantic import SecretStr

from api.images.schemas import Manifest
from deploy.local import certificate
from shared.core.errors import SignerUnavailable, SigningFailed
from shared.core.settings import Settings, SettingsError
from shared.images.formats import ImageDecoderUnavailable
from shared.images.intake import ImageLimits
from shared.images.marks_reader import _summary
from shared.images.provenance import check_trust_file, read_marks
from tests.receiver import Receiver, Request
from worker.jobs.signing import ImageSigner, _tiny, manifest

EXPIRES = "darkroom_signing_certificate_expires_timestamp_seconds"


def settings(folder: Path, valid: timedelta = timedelta(days=90), **own: Any) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_VALID", valid)
        key, own_certificate = certificate.make_certificate()
    (folder / "key.pem").write_text(key)
    (folder / "certificate.pem").write_text(own_certificate)
    signer: dict[str, Any] = own or {"provenance_key_file": folder / "key.pem"}
    return Settings(
        environment="local",
        database_url="postgresql://somebody@127.0.0.1/nothing",
        redis_url="redis://127.0.0.1/0",
        provenance="signed",
        provenance_certificate_file=folder / "certificate.pem",
        **signer,
    )


def state_of(body: bytes, trust_file: Path | None = None) -> str:
    with tempfile.TemporaryFile() as file:
        file.write(body)
        marks = read_marks(file, "image/png", ImageLimits(), trust_file)
    state: str = marks["manifest"]["state"]
    return state


@pytest.mark.long  # C2PA has no clock but the machine's
def test_an_expired_certificate_fails_at_once_and_its_images_are_not_damaged(
    tmp_path: Path,
) -> None:
    signer = ImageSigner(settings(tmp_path, valid=timedelta(seconds=15)))
    end = REGISTRY.get_sample_value(EXPIRES)
    assert end is not None
    assert end > time.time()
    body = signer.sign(_tiny(), "image/png", {}, "x")
    changed = bytearray(body)
    changed[body.rindex(b"IDAT") + 8] ^= 1
    time.sleep(max(0.0, end - time.time()) + 1)
    with pytest.raises(SigningFailed, match="the signing certificate expired on") as failed:
        signer.sign(_tiny(), "image/png", {}, "x")
    assert not failed.value.retryable
    assert (state_of(body), state_of(bytes(changed))) == ("expired", "invalid")


def test_a_file_that_c2pa_refuses_is_no_outage(tmp_path: Path) -> None:
    signer = ImageSigner(settings(tmp_path))
    for body, content_type in ((b"junk", "image/png"), (_tiny(), "image/jpeg")):
        with pytest.raises(SigningFailed):
            signer.sign(body, content_type, {}, "x")


def test_the_log_warns_once_before_the_certificate_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        "worker.jobs.signing.log.warning", lambda event, **_: warnings.append(event)
    )
    ImageSigner(settings(tmp_path)).sign(_tiny(), "image/png", {}, "x")
    assert warnings == []
    ImageSigner(settings(tmp_path, valid=timedelta(days=29))).sign(_tiny(), "image/png", {}, "x")
    assert warnings == ["signing_certificate_expires"]
    left = datetime.fromtimestamp(REGISTRY.get_sample_value(EXPIRES) or 0, UTC) - datetime.now(UTC)
    assert timedelta(days=28) < left < timedelta(days=29)


@pytest.mark.parametrize(
    "url", ["signer.internal:8080/sign", "ftp://x/y", "http://user:pw@127.0.0.1/sign", ""]
)
def test_a_url_that_cannot_be_ends_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"^DARKROOM_PROVENANCE_SIGNER_URL: "):
        ImageSigner(settings(tmp_path, provenance_signer_url=url))


def test_a_token_that_no_header_can_have_ends_the_start(tmp_path: Path) -> None:
    token = SecretStr("a\nb")
    own = settings(
        tmp_path, provenance_signer_url="http://127.0.0.1:9/", provenance_signer_token=token
    )
    with pytest.raises(SettingsError, match=r"^DARKROOM_PROVENANCE_SIGNER_TOKEN "):
        ImageSigner(own)


def forge(request: Request) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request.reply(200, body=key.sign(request.received.body, ec.ECDSA(hashes.SHA256())))


@pytest.mark.parametrize(
    "answer", [lambda request: request.reply(403), lambda request: request.reply(200), forge]
)
def test_a_signer_that_refuses_or_forges_ends_the_start(
    tmp_path: Path, answer: Callable[[Request], None]
) -> None:
    with (
        Receiver(answer) as receiver,
        pytest.raises(SettingsError, match=r"^DARKROOM_PROVENANCE_SIGNER_URL: the sign"),
    ):
        ImageSigner(settings(tmp_path, provenance_signer_url=receiver.url))


def test_a_manifest_that_no_builder_makes_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(receipt: Mapping[str, Any], title: str) -> dict[str, Any]:
        own = manifest(receipt, title)
        more = {"label": "c2pb.actionsX", "data": ["x"], "kind": "Json", "created": True}
        return own | {"assertions": [*own["assertions"], more]}

    monkeypatch.setattr("worker.jobs.signing.manifest", odd)
    body = ImageSigner(settings(tmp_path)).sign(_tiny(), "image/png", {}, "x")
    assert state_of(body) == "untrusted"
    for label in (b"c2pa.actionsX", b"c2pa.actions."):
        assert state_of(body.replace(b"c2pb.actionsX", label)) == "invalid"


def test_what_a_manifest_says_is_text_or_nothing() -> None:
    odd = {"x": [1]}
    actions = {"actions": [{"action": odd, "digitalSourceType": odd}]}
    said = _summary(
        {
            "signature_info": {"issuer": odd, "common_name": odd, "time": 1},
            "assertions": [
                {"label": "c2pa.actions.v2__1", "data": actions},
                {"label": "c2pa.actionsX", "data": ["anything"]},
            ],
            "ingredients": [{"title": odd, "relationship": odd, "instance_id": odd}],
        }
    )
    Manifest.model_validate(said)
    assert said["actions"] == [{"action": None, "digital_source_type": None}]


@pytest.mark.parametrize("status", [429, 503])
def test_a_signer_that_is_away_or_later_refuses_is_waited_for(tmp_path: Path, status: int) -> None:
    statuses = [status, 403]
    with Receiver(lambda request: request.reply(statuses.pop(0))) as receiver:
        signer = ImageSigner(settings(tmp_path, provenance_signer_url=receiver.url))
        with pytest.raises(SignerUnavailable, match="answered 403"):
            signer.sign(_tiny(), "image/png", {}, "x")


@pytest.mark.long
@pytest.mark.parametrize(
    "junk", ["", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_trust_file_without_certificates_is_no_fault_of_images(tmp_path: Path, junk: str) -> None:
    body = ImageSigner(settings(tmp_path)).sign(_tiny(), "image/png", {}, "x")
    (tmp_path / "trust.pem").write_text(junk)
    with pytest.raises(SettingsError, match=r"^DARKROOM_PROVENANCE_TRUST_FILE: "):
        check_trust_file(tmp_path / "trust.pem")
    check_trust_file(tmp_path / "certificate.pem")
    assert state_of(body, tmp_path / "certificate.pem") == "trusted"
    with contextlib.suppress(ImageDecoderUnavailable):  # one that was damaged after the start
        assert state_of(body, tmp_path / "trust.pem") == "untrusted"

"""Sign images: a C2PA manifest in the file says what made it, from what, and how (the receipt).

c2pa-python, the extra `provenance`, is imported late: where the first image is signed.
"""

import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from PIL import Image
from prometheus_client import Gauge

from shared.core.errors import SignerUnavailable, SigningFailed
from shared.core.logging import get_logger
from shared.core.outbound.addresses import OutboundPolicy
from shared.core.outbound.client import GuardedClient
from shared.core.outbound.url import OutboundError, check_url
from shared.core.settings import Settings, SettingsError, darkroom_version
from shared.images.provenance import EXTENDED_KEY_USAGES, RECEIPT_ASSERTION, SOURCE_TYPE, hash_uri

log = get_logger(__name__)

CERTIFICATE_EXPIRES = Gauge(
    "darkroom_signing_certificate_expires_timestamp_seconds",
    "When the certificate that images are signed with expires, in seconds since 1970.",
)
_WARN_BEFORE, _WARN_EVERY = timedelta(days=30), timedelta(days=1)

_MAX_SIGNATURE = 4096
"""Bytes. One by RSA with 16,384 bits has 2,048."""
_CURVES: Mapping[str, tuple[str, hashes.HashAlgorithm]] = {
    "secp256r1": ("ES256", hashes.SHA256()),
    "secp384r1": ("ES384", hashes.SHA384()),
    "secp521r1": ("ES512", hashes.SHA512()),
}
_ANYWHERE = OutboundPolicy(
    allow_http=True, allowed_networks=(ip_network("0.0.0.0/0"), ip_network("::/0"))
)
"""The operator names the signer, not a user."""
_OUTAGES = frozenset({408, 429, *range(500, 600)})

Sign = Callable[[bytes], bytes]
"""The signature of bytes, as COSE or (ECDSA) DER has it."""


class _WrongAnswer(SignerUnavailable):
    """The signer is there, but gives no signature: a wrong setting if that is so at the start."""


class ImageSigner:
    """Signs with a key file or a remote signer. Threads may share it."""

    def __init__(self, settings: Settings) -> None:
        """Read the certificates and sign a tiny image.

        Raises:
            SettingsError: a file or setting is missing or wrong, C2PA refuses the certificate, or
                the signer answers something else than a signature.
        """
        try:
            import c2pa
        except ImportError:
            raise SettingsError(
                "DARKROOM_PROVENANCE is signed, and c2pa-python is not installed: "
                "pip install 'darkroom-server[provenance]'"
            ) from None
        certificates = _read(settings.provenance_certificate_file, "CERTIFICATE")
        leaf = _certificate(certificates)
        self._certificates = certificates.decode()
        self._expires = leaf.not_valid_after_utc
        self._warned = datetime.min.replace(tzinfo=UTC)
        CERTIFICATE_EXPIRES.set(self._expires.timestamp())
        algorithm, digest = _algorithm(leaf)
        self._algorithm = c2pa.C2paSigningAlg[algorithm]
        self._is_remote = settings.provenance_signer_url is not None
        self._sign = _remote(settings) if self._is_remote else _local(settings, leaf, digest)
        self._context = c2pa.Context.from_dict(
            {
                "builder": {"thumbnail": {"enabled": False}},
                "trust": {"trust_config": "\n".join(EXTENDED_KEY_USAGES)},
                "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
            }
        )
        try:
            self.sign(_tiny(), "image/png", {}, "start")
        except SigningFailed as error:
            raise SettingsError(f"Images cannot be signed: {error.message}") from None
        except _WrongAnswer as error:
            raise SettingsError(f"DARKROOM_PROVENANCE_SIGNER_URL: {error.message}") from None
        except SignerUnavailable as error:
            log.warning("signer_unavailable", reason=error.message)

    def sign(self, body: bytes, content_type: str, receipt: Mapping[str, Any], title: str) -> bytes:
        """The file with a manifest. Its metadata must be complete: what changes later breaks it.

        Raises:
            SignerUnavailable: the remote signer gave no signature, or a wrong one.
            SigningFailed: the certificate has expired, or C2PA refuses the file.
        """
        import c2pa

        self._look_at_expiry()
        failures: list[Exception] = []
        signatures: list[bytes] = []

        def sign(data: bytes) -> bytes:
            try:
                signatures.append(self._sign(data))
            except Exception as error:
                failures.append(error)
                raise
            return signatures[-1]

        signed = io.BytesIO()
        try:
            # Of its own: a signer is not for several threads at once.
            with c2pa.Signer.from_callback(sign, self._algorithm, self._certificates) as signer:
                builder = c2pa.Builder(manifest(receipt, title), self._context)
                builder.sign(signer, content_type, io.BytesIO(body), signed)
        except c2pa.C2paError as error:
            failure = failures[0] if failures else error
            if isinstance(failure, SignerUnavailable):
                raise failure from error
            reason = " ".join(str(failure).split())
            if self._is_remote and signatures:  # c2pa verifies what it was given
                raise _WrongAnswer(f"the signature is wrong: {reason}") from error
            raise SigningFailed(f"signing failed: {reason}") from error
        return signed.getvalue()

    def _look_at_expiry(self) -> None:
        now = datetime.now(UTC)
        if now >= self._expires:
            raise SigningFailed(f"the signing certificate expired on {self._expires:%Y-%m-%d}")
        if self._expires - now < _WARN_BEFORE and now - self._warned > _WARN_EVERY:
            self._warned = now
            log.warning("signing_certificate_expires", at=self._expires.isoformat())


def manifest(receipt: Mapping[str, Any], title: str) -> dict[str, Any]:
    """What is signed, as c2pa's builder takes it."""
    parents = [("Initial image", receipt.get("init_image_sha256"))]
    inputs = [("Mask", receipt.get("mask_sha256"))]
    inputs += [("Control image", one["image_sha256"]) for one in receipt.get("controls") or ()]
    inputs += [("Reference image", one["sha256"]) for one in receipt.get("references") or ()]
    kinds = (("parentOf", parents), ("inputTo", inputs))
    ingredients = [
        {"title": name, "relationship": kind, "instance_id": hash_uri(sha256)}
        for kind, named in kinds
        for name, sha256 in named
        if sha256 is not None
    ]
    for number, ingredient in enumerate(ingredients):
        ingredient["label"] = str(number)
    ids = {
        kind: [one["label"] for one in ingredients if one["relationship"] == kind]
        for kind, _ in kinds
    }
    made: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    actions = [made]
    if ids["parentOf"]:
        made["action"] = "c2pa.edited"
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ids["parentOf"]}}
        actions.insert(0, opened)
    if ids["inputTo"]:
        made["parameters"] = {"ingredientIds": ids["inputTo"]}
    return {
        "claim_generator_info": [{"name": "Darkroom", "version": darkroom_version()}],
        "title": title,
        "ingredients": ingredients,
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": actions}, "created": True},
            {"label": RECEIPT_ASSERTION, "data": receipt, "kind": "Json", "created": True},
        ],
    }


def _read(path: Path | None, which: str) -> bytes:
    name = f"DARKROOM_PROVENANCE_{which}_FILE"
    if path is None:
        raise SettingsError(f"{name} is required when provenance is 'signed'")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from None


def _certificate(pem: bytes) -> x509.Certificate:
    """The signer's own, the first of its chain."""
    name = "DARKROOM_PROVENANCE_CERTIFICATE_FILE"
    try:
        leaf = x509.load_pem_x509_certificates(pem)[0]
    except ValueError:
        raise SettingsError(f"{name} does not hold PEM certificates") from None
    if leaf.not_valid_after_utc < datetime.now(UTC):
        raise SettingsError(f"{name}: it has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    return leaf


def _algorithm(leaf: x509.Certificate) -> tuple[str, hashes.HashAlgorithm]:
    """C2PA's name of the algorithm that the certificate's key is for, and its hash."""
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPublicKey):
        return "PS256", hashes.SHA256()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ED25519", hashes.SHA512()
    raise SettingsError(
        "DARKROOM_PROVENANCE_CERTIFICATE_FILE: its key must be P-256, P-384, P-521, RSA or Ed25519"
    )


def _local(settings: Settings, leaf: x509.Certificate, digest: hashes.HashAlgorithm) -> Sign:
    name = "DARKROOM_PROVENANCE_KEY_FILE"
    try:
        key = serialization.load_pem_private_key(_read(settings.provenance_key_file, "KEY"), None)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} does not hold a PEM key without a password") from None
    if key.public_key() != leaf.public_key():
        raise SettingsError(f"{name}: it is not the key of the certificate")
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return lambda data: key.sign(data, ec.ECDSA(digest))
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
        return lambda data: key.sign(data, pss, digest)
    assert isinstance(key, ed25519.Ed25519PrivateKey)  # noqa: S101  # as its certificate says
    return key.sign


def _remote(settings: Settings) -> Sign:
    if settings.provenance_key_file is not None:
        raise SettingsError(
            "Set DARKROOM_PROVENANCE_KEY_FILE or DARKROOM_PROVENANCE_SIGNER_URL, not both"
        )
    client = GuardedClient(_ANYWHERE)
    url = settings.provenance_signer_url or ""
    try:
        check_url(url, _ANYWHERE)
    except OutboundError as error:
        raise SettingsError(f"DARKROOM_PROVENANCE_SIGNER_URL: {error}") from None
    headers = {"content-type": "application/octet-stream"}
    if settings.provenance_signer_token is not None:
        token = settings.provenance_signer_token.get_secret_value()
        if not (token.isascii() and token.isprintable()):
            raise SettingsError(
                "DARKROOM_PROVENANCE_SIGNER_TOKEN has characters that no header can have"
            )
        headers["authorization"] = f"Bearer {token}"
    seconds = settings.provenance_signer_timeout.total_seconds()

    def sign(data: bytes) -> bytes:
        try:
            answer = client.send(
                "POST", url, headers, data, deadline_s=seconds, max_bytes=_MAX_SIGNATURE
            )
        except OutboundError as error:
            raise SignerUnavailable(f"the signer gave no answer: {error}") from error
        if answer.status != 200 or not answer.body or answer.truncated:
            size = f"{len(answer.body)} bytes{' and more' if answer.truncated else ''}"
            kind = SignerUnavailable if answer.status in _OUTAGES else _WrongAnswer
            raise kind(f"the signer answered {answer.status} with {size}")
        return answer.body

    return sign


def _tiny() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()

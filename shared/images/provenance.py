"""Provenance: how an image says, to machines, that a model made it."""

import json
import re
import ssl
from pathlib import Path
from typing import IO, Any

from shared.core.settings import SettingsError
from shared.images.formats import ImageDecoderUnavailable
from shared.images.intake import ImageLimits, decoder_slot, run_confined

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's word for media that a trained model made."""

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)

RECEIPT_ASSERTION = "darkroom.receipt"
"""The label of the receipt in a C2PA manifest."""

EXTENDED_KEY_USAGES = (
    "1.3.6.1.5.5.7.3.4",  # e-mail protection
    "1.3.6.1.5.5.7.3.36",  # document signing (RFC 9336)
    "1.3.6.1.4.1.311.76.59.1.9",  # C2PA, by Microsoft
    "1.3.6.1.4.1.62558.2.1",  # C2PA's own, of claim signing
)
"""What a signing certificate may be for; one of them is needed."""

_HASH_URI = "nih:sha-256;"


def hash_uri(sha256: str) -> str:
    """A file named by its SHA-256 (RFC 6920, 7)."""
    return f"{_HASH_URI}{sha256}"


def sha256_of(uri: str) -> str | None:
    """The SHA-256 that `hash_uri` named."""
    found = re.fullmatch(re.escape(_HASH_URI) + r"([0-9a-f]{64})", uri)
    return found[1] if found else None


_ROOT = Path(__file__).resolve().parents[2]
_READER = (
    "import sys; sys.path.append(sys.argv.pop(1))\n"
    "from shared.images.marks_reader import main; main()"
)
_MAX_ANSWER = 256 * 1024


def check_trust_file(path: Path | None) -> None:
    """Find out at the start whether it can be used.

    Raises:
        SettingsError: it cannot be read, or is not made of PEM certificates.
    """
    if path is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        raise SettingsError(
            f"DARKROOM_PROVENANCE_TRUST_FILE: {path} has no PEM certificates, or damaged ones: "
            f"{error.strerror or error}"
        ) from None


def read_marks(
    file: IO[bytes], content_type: str, limits: ImageLimits, trust_file: Path | None
) -> dict[str, Any]:
    """What a file says of its making: `digital_source_type` by its XMP, `manifest`, and `was_read`.

    The file is anybody's, so a confined process reads it, and nothing that it names is fetched.
    Without c2pa-python manifests are not looked for, and `was_read` is false.

    Raises `ImageUndecodable` or `ImageDecoderUnavailable`.
    """
    request = {
        "content_type": content_type,
        "trust_file": str(trust_file.resolve()) if trust_file is not None else None,
        "memory_bytes": limits.decoder_memory_bytes,
        "cpu_seconds": limits.decoder_cpu_s,
        "output_bytes": _MAX_ANSWER,
    }

    def read(answer: IO[bytes]) -> dict[str, Any]:
        try:
            marks: dict[str, Any] = json.loads(answer.read(_MAX_ANSWER))
        except ValueError as error:
            raise ImageDecoderUnavailable("The reader gave no sensible answer.") from error
        return marks

    with decoder_slot(limits):
        arguments = ["-c", _READER, str(_ROOT), json.dumps(request)]
        return run_confined(arguments, file, limits, read)

"""The reader's process: says what marks one untrusted file on stdin as made by a model.

`shared.images.provenance` starts it, confined like the image decoder. Its one argument is a JSON
object: `content_type`, `trust_file`, and the limits. Its answer is one line of JSON, what
`read_marks` returns.
"""

import io
import json
import re
import sys
from typing import Any

from PIL import Image

from shared.images.decoder import confine

_UNVOUCHED = frozenset({"signingCredential.untrusted", "signingCredential.expired"})
_INTACT = frozenset({"claimSignature.validated", "assertion.dataHash.match"})
_MOST = 50
_LONGEST = 300
_TYPE = re.compile(
    rb"DigitalSourceType.{0,200}?(https?://cv\.iptc\.org/newscodes/digitalsourcetype/\w{1,64})",
    re.DOTALL,
)
_ACTIONS = re.compile(r"c2pa\.actions(\.v2)?(__\d+)?")
"""Labels of assertions that C2PA checks; any other is its signer's own."""
_FORMATS = {"image/png": "PNG", "image/webp": "WEBP", "image/jpeg": "JPEG"}


def source_type(data: bytes, content_type: str) -> str | None:
    """IPTC's digital source type, by the file's XMP."""
    try:
        with Image.open(io.BytesIO(data), formats=(_FORMATS[content_type],)) as image:
            found = _TYPE.search(image.info.get("xmp") or b"")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return found[1].decode("ascii") if found else None


def read_manifest(data: bytes, content_type: str, trust_file: str | None) -> dict[str, Any] | None:
    """What the active manifest says and whether it is true of the file; None: there is none.

    Nothing is fetched, whatever the file names.

    Raises:
        ImportError: c2pa-python is not installed.
        OSError, C2paError: of the trust file, which is no fault of the image.
    """
    import c2pa

    from shared.images.provenance import EXTENDED_KEY_USAGES

    trust = {"trust_config": "\n".join(EXTENDED_KEY_USAGES)}
    if trust_file is not None:
        with open(trust_file, encoding="utf-8", errors="replace") as file:
            trust["trust_anchors"] = file.read()
    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}, "trust": trust}
    context = c2pa.Context.from_dict(settings)
    try:
        reader = c2pa.Reader(content_type, io.BytesIO(data), context=context)
        state = str(reader.get_validation_state())
        results = reader.get_validation_results() or {}
        said = _summary(reader.get_active_manifest() or {})
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__:
            return None
        return _unreadable(str(error))
    except (AttributeError, IndexError, KeyError, TypeError):
        return _unreadable("It is not built as C2PA describes.")
    active = results.get("activeManifest") or {}
    failures = active.get("failure") or []
    return said | {
        "state": {"Trusted": "trusted", "Valid": "untrusted"}.get(state) or _why_invalid(active),
        "problems": [
            {"code": _text(one.get("code")), "explanation": _text(one.get("explanation"))}
            for one in failures
        ],
    }


def _unreadable(why: str) -> dict[str, Any]:
    return {"state": "invalid", "problems": [{"code": "unreadable", "explanation": why}]}


def _why_invalid(results: dict[str, Any]) -> str:
    """`expired`, if nothing else speaks against a manifest that is of this file; or `invalid`."""
    wrong = {one.get("code") for one in results.get("failure") or ()}
    right = {one.get("code") for one in results.get("success") or ()}
    is_expired = "signingCredential.expired" in wrong and wrong <= _UNVOUCHED and right >= _INTACT
    return "expired" if is_expired else "invalid"


def _summary(manifest: dict[str, Any]) -> dict[str, Any]:
    from shared.images.provenance import sha256_of

    generators = manifest.get("claim_generator_info") or [{}]
    signature = manifest.get("signature_info") or {}
    actions = [
        action
        for assertion in manifest.get("assertions") or ()
        if _ACTIONS.fullmatch(str(assertion.get("label")))
        for action in (assertion.get("data") or {}).get("actions") or ()
    ]
    return {
        "claim_generator": " ".join(
            str(generators[0][name]) for name in ("name", "version") if name in generators[0]
        ),
        "issuer": _text(signature.get("issuer")),
        "common_name": _text(signature.get("common_name")),
        "signed_at": _text(signature.get("time")),
        "actions": [
            {
                "action": _text(action.get("action")),
                "digital_source_type": _text(action.get("digitalSourceType")),
            }
            for action in actions
        ],
        "ingredients": [
            {
                "title": _text(one.get("title")),
                "relationship": _text(one.get("relationship")),
                "sha256": sha256_of(str(one.get("instance_id"))),
            }
            for one in manifest.get("ingredients") or ()
        ],
    }


def _text(value: Any) -> str | None:
    """As it is; what is no text says nothing."""
    return value if isinstance(value, str) else None


def _short(value: Any) -> Any:
    """As it is, but no longer than a person reads."""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, list):
        return [_short(one) for one in value[:_MOST]]
    if isinstance(value, dict):
        return {name: _short(one) for name, one in value.items()}
    return value if value is None else str(value)[:_LONGEST]


def main() -> None:
    request = json.loads(sys.argv[1])
    confine(request["memory_bytes"], request["cpu_seconds"], request["output_bytes"])
    data = sys.stdin.buffer.read()
    content_type = request["content_type"]
    marks: dict[str, Any] = {
        "digital_source_type": source_type(data, content_type),
        "manifest": None,
    }
    try:
        manifest = read_manifest(data, content_type, request["trust_file"])
        marks["manifest"] = _short(manifest)
        marks["was_read"] = True
    except ImportError:
        marks["was_read"] = False
    sys.stdout.write(json.dumps(marks))

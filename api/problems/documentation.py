"""Problems in the OpenAPI document."""

from typing import Any

from api.problems.answers import MEDIA_TYPE
from api.problems.catalogue import CATALOGUE
from api.problems.problem import ProblemDocument


def responses(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems an operation can answer with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    everywhere = ("unauthenticated", "rate_limited")
    with_body = ("body_too_slow", "disk_full", "busy") if "body_too_large" in codes else ()
    for kind in (CATALOGUE[code] for code in (*everywhere, *codes, *with_body)):
        entry = by_status.setdefault(
            kind.status,
            {"model": ProblemDocument, "description": "", "content": {MEDIA_TYPE: {}}},
        )
        line = f"`{kind.code}`: {kind.title}."
        entry["description"] = f"{entry['description']} {line}".strip()
    return by_status

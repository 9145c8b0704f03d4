"""Problems in the OpenAPI document."""

from typing import Any

from api.problems.answers import MEDIA_TYPE
from api.problems.catalogue import CATALOGUE
from api.problems.problem import ProblemDocument

_WITH_A_KEY = ("unauthenticated", "rate_limited", "too_many_at_once", "validation_failed")
"""What every operation that needs a key can answer; the last to a parameter it does not know."""


def responses(*codes: str, public: bool = False) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems an operation can answer with.

    A `public` one needs no key.
    """
    by_status: dict[int | str, dict[str, Any]] = {}
    everywhere = () if public else _WITH_A_KEY
    with_body = ("body_too_slow", "disk_full", "busy") if "body_too_large" in codes else ()
    for kind in (CATALOGUE[code] for code in dict.fromkeys((*everywhere, *codes, *with_body))):
        entry = by_status.setdefault(
            kind.status,
            {"model": ProblemDocument, "description": "", "content": {MEDIA_TYPE: {}}},
        )
        line = f"`{kind.code}`: {kind.title}."
        entry["description"] = f"{entry['description']} {line}".strip()
    return by_status

"""Files as answers: validators, conditions and byte ranges (RFC 9110, 13 and 14)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from fastapi.responses import Response

from api.core.errors import Problem
from api.core.serialization import IfNoneMatch, etag_matches

_ONE_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.ASCII | re.IGNORECASE)
_LONGEST_NUMBER = 18
"""Digits; no file is longer."""


@dataclass(frozen=True)
class Conditions:
    """What a request for a file says of the copy that its client has."""

    if_none_match: str | None
    range: str | None
    if_range: str | None

    def has_it(self, etag: str) -> bool:
        """Whether the client has the file already: the answer is 304."""
        return self.if_none_match is not None and etag_matches(self.if_none_match, etag)


def _conditions(
    if_none_match: IfNoneMatch = None,
    range_: Annotated[
        str | None,
        Header(alias="Range", description="One range, `bytes=0-999`; several get the whole file."),
    ] = None,
    if_range: Annotated[
        str | None, Header(description="An ETag: the range only if the file still has it.")
    ] = None,
) -> Conditions:
    return Conditions(if_none_match, range_, if_range)


FileConditions = Annotated[Conditions, Depends(_conditions)]


def file_answer(
    body: bytes, media_type: str, headers: Mapping[str, str], conditions: Conditions
) -> Response:
    """The file or the range of it that was asked for; `headers` have its strong ETag.

    A `Range` that cannot be read, or asks for several parts, is ignored, as a server may.

    Raises:
        Problem: 416 for a range that begins behind the file's end.
    """
    headers = {**headers, "Accept-Ranges": "bytes"}
    part = _range_of(conditions, headers["ETag"], len(body))
    if part is None:
        return Response(body, 200, headers, media_type)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(body)}"
    return Response(body[part.start : part.stop], 206, headers, media_type)


def _range_of(conditions: Conditions, etag: str, length: int) -> range | None:
    if conditions.range is None or conditions.if_range not in (None, etag):
        return None
    match = _ONE_RANGE.fullmatch(conditions.range)
    if match is None or match[1] == match[2] == "":
        return None
    first, last = (int(text[:_LONGEST_NUMBER]) if text else None for text in match.groups())
    if first is None:  # the last `last` bytes
        first, last = max(0, length - (last or 0)), length - 1
    elif last is not None and last < first:
        return None
    if first >= length:
        raise Problem(
            "range_not_satisfiable",
            f"The file has {length} bytes.",
            headers={"Content-Range": f"bytes */{length}", "Accept-Ranges": "bytes"},
        )
    return range(first, min(length, length if last is None else last + 1))

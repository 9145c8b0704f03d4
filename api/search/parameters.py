"""The query parameters of searches: the text, and filters, `metadata.<key>=` among them."""

import unicodedata
from typing import Annotated, Literal

from fastapi import Depends, Query, Request
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api.jobs.schemas import MAX_PROMPT
from api.parameters import open_ended
from api.problems import FieldError, Problem
from api.wire import CreatedAfter, CreatedBefore, no_nul
from shared.search.filters import Filters
from shared.search.question import Rank

_MAX_METADATA = 16
_METADATA = "metadata."
_MAX_SEED = 2**53 - 1


def _says_something(text: str) -> str:
    text = unicodedata.normalize("NFC", no_nul(text)).strip()
    if not text:
        raise PydanticCustomError("empty", "It is empty.")
    return text


Text = Annotated[
    str,
    Query(max_length=MAX_PROMPT, description=f"In any language, 1 to {MAX_PROMPT} characters."),
    AfterValidator(_says_something),
]
MaybeText = Annotated[
    Annotated[str, AfterValidator(_says_something)] | None,
    Query(
        max_length=MAX_PROMPT,
        description=f"In any language, up to {MAX_PROMPT} characters; may be empty.",
    ),
    BeforeValidator(lambda text: (text or "").strip() or None),
]
Name = Annotated[str, Query(max_length=64), AfterValidator(no_nul)]
SessionFilter = Annotated[Name | None, Query(description="Only images of this session.")]
Side = Annotated[int, Query(ge=1, le=100_000)]
HitLimit = Annotated[int, Field(ge=1, le=100, description="Entries per page, 1 to 100.")]
After = Annotated[
    str | None, Query(max_length=2000, description="`next_cursor` of the page before.")
]
MinScore = Annotated[
    float | None, Query(ge=0, le=1, allow_inf_nan=False, description="Leave out what scores less.")
]

RankBy = Annotated[
    Rank,
    Query(
        description="`relevance`: by the score, of meaning and words. `similarity`: by the cosine "
        "alone, strictly descending."
    ),
]
Diversity = Annotated[
    bool,
    Query(
        description="true: within a page, near-duplicates of a better entry go behind what is "
        "about as good; so scores do not descend. No page has other entries for that."
    ),
]


def needs_query(**given: bool) -> None:
    """Refuse parameters that mean something with a query alone.

    Raises:
        Problem: 422 for the first that is given.
    """
    for name, is_given in given.items():
        if is_given:
            raise _broken(name, "It needs a query: q.")


@open_ended(_METADATA)
async def read_filters(
    *,
    request: Request,
    session_id: SessionFilter = None,
    model: Annotated[Name | None, Query(description="Only images of this model.")] = None,
    seed: Annotated[
        int | None, Query(ge=0, le=_MAX_SEED, description="Only images with this seed.")
    ] = None,
    kind: Annotated[
        Literal["txt2img", "img2img"] | None, Query(description="Only images made this way.")
    ] = None,
    width: Annotated[Side | None, Query(description="Only images this wide, in pixels.")] = None,
    height: Annotated[Side | None, Query(description="Only images this high, in pixels.")] = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
    starred: Annotated[
        bool | None, Query(description="true: only starred images; false: only the others.")
    ] = None,
) -> Filters:
    """The filters; every one that is given must hold. `metadata.<key>=<value>` asks for a job's
    metadata.

    Raises:
        Problem: 422 for metadata that no job can have.
    """
    return Filters(
        session_id=session_id,
        model=model,
        seed=seed,
        kind=kind,
        width=width,
        height=height,
        created_after=created_after,
        created_before=created_before,
        starred=starred,
        metadata=_metadata(request),
    )


AskedFilters = Annotated[Filters, Depends(read_filters)]


def _metadata(request: Request) -> dict[str, str]:
    pairs = [
        (name.removeprefix(_METADATA), value)
        for name, value in request.query_params.multi_items()
        if name.startswith(_METADATA)
    ]
    for key, value in pairs:
        if not key or "\0" in key + value or len(key) > 64 or len(value) > 512:
            raise _broken(f"{_METADATA}{key}"[:64], "No job has such metadata.")
    if len(pairs) > _MAX_METADATA or len(dict(pairs)) != len(pairs):
        raise _broken("metadata", f"At most {_MAX_METADATA} keys, each once.")
    return dict(pairs)


def _broken(parameter: str, message: str) -> Problem:
    code = "metadata" if parameter.startswith("metadata") else "query_required"
    error = FieldError(pointer=None, parameter=parameter, code=code, message=message)
    return Problem("validation_failed", f"{parameter}: {message}", errors=[error])

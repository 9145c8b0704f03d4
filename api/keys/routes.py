"""HTTP of API keys."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api.auth import AdminRead, AdminWrite
from api.bodies import body_schema, json_body
from api.deps import Res
from api.keys import service
from api.keys.schemas import KEY_EXAMPLES, Key, KeyRequest, NewKey
from api.problems import responses
from api.wire import Page, PageLimit, json_answer

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    operation_id="keys.create",
    summary="Make an API key",
    status_code=201,
    response_class=Response,
    responses={
        201: {"model": NewKey},
        **responses(
            "insufficient_scope",
            "body_too_large",
            "unsupported_media_type",
            "malformed_json",
            "validation_failed",
            "database_unavailable",
        ),
    },
    openapi_extra=body_schema(KeyRequest, KEY_EXAMPLES),
)
async def create(
    resources: Res,
    principal: AdminWrite,
    asked: Annotated[KeyRequest, Depends(json_body(KeyRequest))],
) -> Response:
    """The answer has the whole key, this once.

    It may do at most what the key that you send may do, and ends no later.
    """
    return json_answer(await service.create(resources, principal, asked), 201)


@router.get(
    "",
    operation_id="keys.list",
    summary="List API keys",
    response_class=Response,
    responses={
        200: {"model": Page[Key]},
        **responses(
            "insufficient_scope", "validation_failed", "malformed_cursor", "database_unavailable"
        ),
    },
)
async def list_keys(
    resources: Res,
    principal: AdminRead,
    limit: PageLimit = 50,
    after: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Your tenant's keys without their secrets, those that have ended too."""
    return json_answer(await service.list_page(resources, principal, limit, after))


@router.delete(
    "/{key_id}",
    operation_id="keys.revoke",
    summary="Revoke an API key",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "It has ended, here at once and everywhere within 5 s."},
        **responses("insufficient_scope", "not_found", "database_unavailable"),
    },
)
async def revoke(
    resources: Res,
    principal: AdminWrite,
    key_id: Annotated[str, Path(description="The public part of the key.")],
) -> Response:
    """For good; may be repeated.

    You can revoke the key that you send, and those that may do no more and end no later.
    """
    await service.revoke(resources, principal, key_id)
    return Response(status_code=204)

"""HTTP of usage."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api.auth import authenticate
from api.deps import Res
from api.principal import Principal
from api.problems import responses
from api.usage import service
from api.usage.schemas import Usage
from api.wire import json_answer

router = APIRouter(prefix="/v1/usage", tags=["keys"])


@router.get(
    "",
    operation_id="usage.get",
    summary="What this key has used and has left",
    response_class=Response,
    responses={200: {"model": Usage}, **responses("database_unavailable")},
)
async def get(resources: Res, principal: Annotated[Principal, Depends(authenticate)]) -> Response:
    """Any key may ask for itself. `used` is counted whether or not there is a limit."""
    return json_answer(await service.usage(resources, principal))

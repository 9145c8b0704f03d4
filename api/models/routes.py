"""HTTP of models."""

from fastapi import APIRouter, Response

from api.auth import JobsRead
from api.deps import Res
from api.models.schemas import Model
from api.models.service import list_models
from api.problems import responses
from api.wire import Page, json_answer

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get(
    "",
    operation_id="models.list",
    summary="List models",
    response_class=Response,
    responses={200: {"model": Page[Model]}, **responses("insufficient_scope")},
)
async def models(resources: Res, _: JobsRead) -> Response:
    """What can be asked for: each model's defaults, limits, schedulers and live workers."""
    return json_answer(await list_models(resources))

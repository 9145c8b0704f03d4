"""HTTP of webhook endpoints, the tenant's webhook secret, and the delivery log."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response

from api.context import Res
from api.core.auth import require
from api.core.bodies import body_schema, json_body
from api.core.errors import FieldError, Problem, responses
from api.core.principal import Principal
from api.core.serialization import AwareTime, Page, PageLimit, json_answer
from api.webhooks import deliveries, service
from api.webhooks.schemas import (
    ENDPOINT_EXAMPLES,
    AnyEventName,
    Delivery,
    DeliveryStateName,
    Endpoint,
    EndpointCreation,
    EndpointUpdate,
    EndpointWithSecret,
    RedeliveryCount,
    TenantSecret,
)
from shared.core.ids import MalformedId, Prefix, from_wire

router = APIRouter(prefix="/v1", tags=["webhooks"])

WebhooksRead = Annotated[Principal, Depends(require("webhooks:read"))]
WebhooksWrite = Annotated[Principal, Depends(require("webhooks:write"))]
EndpointId = Annotated[str, Path(description="`whe_…`")]
DeliveryId = Annotated[str, Path(description="`whd_…`")]
After = Annotated[str | None, Query(description="`next_cursor` of the page before.")]

_READ = ("insufficient_scope", "database_unavailable")
_ONE = (*_READ, "not_found")
_BODY = (*_READ, "body_too_large", "unsupported_media_type", "malformed_json", "validation_failed")


@router.post(
    "/webhook-endpoints",
    operation_id="webhook_endpoints.create",
    summary="Register a webhook endpoint",
    status_code=201,
    response_class=Response,
    responses={
        201: {
            "model": EndpointWithSecret,
            "description": "Registered. The secret is shown this once.",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The endpoint."}},
        },
        **responses(*_BODY, "too_many_webhook_endpoints"),
    },
    openapi_extra=body_schema(EndpointCreation, ENDPOINT_EXAMPLES),
)
async def create_endpoint(
    resources: Res,
    principal: WebhooksWrite,
    asked: Annotated[EndpointCreation, Depends(json_body(EndpointCreation))],
) -> Response:
    """Events that happen from now on are sent to it as signed Standard Webhooks."""
    made = await service.create(resources, principal, asked)
    return json_answer(made, 201, {"Location": made.links.self})


@router.get(
    "/webhook-endpoints",
    operation_id="webhook_endpoints.list",
    summary="List webhook endpoints",
    responses=responses(*_READ, "malformed_cursor"),
)
async def list_endpoints(
    resources: Res, principal: WebhooksRead, limit: PageLimit = 20, after: After = None
) -> Page[Endpoint]:
    """Newest first."""
    return await service.list_page(resources, principal, limit, after)


@router.get(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="webhook_endpoints.get",
    summary="Get a webhook endpoint",
    responses=responses(*_ONE),
)
async def get_endpoint(
    resources: Res, principal: WebhooksRead, endpoint_id: EndpointId
) -> Endpoint:
    """Without its secret; `public_keys` are those of a v1a endpoint."""
    return await service.get(resources, principal, endpoint_id)


@router.patch(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="webhook_endpoints.update",
    summary="Change a webhook endpoint",
    responses=responses(*_BODY, "not_found"),
    openapi_extra=body_schema(EndpointUpdate),
)
async def update_endpoint(
    resources: Res,
    principal: WebhooksWrite,
    endpoint_id: EndpointId,
    asked: Annotated[EndpointUpdate, Depends(json_body(EndpointUpdate))],
) -> Endpoint:
    """Fields that are left out stay. Disabling gives up the deliveries that wait for it."""
    return await service.update(resources, principal, endpoint_id, asked)


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="webhook_endpoints.delete",
    summary="Delete a webhook endpoint",
    status_code=204,
    responses=responses(*_ONE),
)
async def delete_endpoint(
    resources: Res, principal: WebhooksWrite, endpoint_id: EndpointId
) -> None:
    """Its secrets and its part of the delivery log go with it."""
    await service.delete(resources, principal, endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/rotate-secret",
    operation_id="webhook_endpoints.rotate_secret",
    summary="Rotate the secret of a webhook endpoint",
    responses=responses(*_ONE),
)
async def rotate_secret(
    resources: Res, principal: WebhooksWrite, endpoint_id: EndpointId
) -> EndpointWithSecret:
    """For 24 hours every request carries two signatures, of the old and of the new secret."""
    return await service.rotate_secret(resources, principal, endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/test",
    operation_id="webhook_endpoints.test",
    summary="Send a test event",
    status_code=202,
    responses=responses(*_ONE),
)
async def test_endpoint(
    resources: Res, principal: WebhooksWrite, endpoint_id: EndpointId
) -> Delivery:
    """Sends `endpoint.test`, to a disabled endpoint too. GET the delivery to see how it went."""
    return await service.test(resources, principal, endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/redeliver",
    operation_id="webhook_endpoints.redeliver",
    summary="Send again what an endpoint has missed",
    status_code=202,
    responses=responses(*_ONE, "validation_failed", "webhook_endpoint_disabled"),
)
async def redeliver_range(
    *,
    resources: Res,
    principal: WebhooksWrite,
    endpoint_id: EndpointId,
    since: Annotated[AwareTime, Query(description="From this moment on; RFC 3339 with an offset.")],
    until: Annotated[
        AwareTime | None, Query(description="Up to this moment; by default now.")
    ] = None,
    state: Annotated[
        Literal["failed", "succeeded", "all"],
        Query(description="Which deliveries of that time; by default those given up."),
    ] = "failed",
) -> RedeliveryCount:
    """Every delivery made in that time goes out again, each with its old `webhook-id`."""
    states = ("failed", "succeeded", "pending") if state == "all" else (state,)
    return await deliveries.redeliver_range(
        resources, principal, endpoint_id, since=since, until=until, states=states
    )


@router.get(
    "/webhook-deliveries",
    operation_id="webhook_deliveries.list",
    summary="List webhook deliveries",
    responses=responses(*_READ, "validation_failed", "malformed_cursor"),
)
async def list_deliveries(
    *,
    resources: Res,
    principal: WebhooksRead,
    endpoint_id: Annotated[str | None, Query(description="Only to this endpoint, `whe_…`.")] = None,
    job_id: Annotated[str | None, Query(description="Only of this job, `job_…`.")] = None,
    batch_id: Annotated[str | None, Query(description="Only of this batch, `batch_…`.")] = None,
    state: Annotated[
        list[DeliveryStateName] | None,
        Query(max_length=3, description="Only deliveries in this state. May be repeated."),
    ] = None,
    event: Annotated[
        list[AnyEventName] | None,
        Query(max_length=12, description="Only deliveries of this event. May be repeated."),
    ] = None,
    limit: PageLimit = 20,
    after: After = None,
) -> Page[Delivery]:
    """Newest first, each with its attempts. The log is kept for 30 days."""
    if job_id is not None and batch_id is not None:
        raise _bad_filter("batch_id", "Filter by job or by batch, not by both.")
    listing = deliveries.Listing(
        endpoint_id=_filter_id("whe", endpoint_id, "endpoint_id"),
        resource_id=_filter_id("job", job_id, "job_id")
        or _filter_id("batch", batch_id, "batch_id"),
        states=tuple(state or ()),
        events=tuple(event or ()),
    )
    return await deliveries.list_page(resources, principal, listing, limit, after)


@router.get(
    "/webhook-deliveries/{delivery_id}",
    operation_id="webhook_deliveries.get",
    summary="Get a webhook delivery",
    responses=responses(*_ONE),
)
async def get_delivery(
    resources: Res, principal: WebhooksRead, delivery_id: DeliveryId
) -> Delivery:
    """With its attempts: when, how long, which status or error, and the answer's beginning."""
    return await deliveries.get(resources, principal, delivery_id)


@router.post(
    "/webhook-deliveries/{delivery_id}/redeliver",
    operation_id="webhook_deliveries.redeliver",
    summary="Send a delivery again",
    status_code=202,
    responses=responses(*_ONE, "webhook_endpoint_disabled"),
)
async def redeliver(resources: Res, principal: WebhooksWrite, delivery_id: DeliveryId) -> Delivery:
    """At once, whatever its state, with the same `webhook-id`; the schedule begins anew."""
    return await deliveries.redeliver(resources, principal, delivery_id)


@router.get(
    "/webhook-secret",
    operation_id="webhook_secret.get",
    summary="Get the secret of jobs' own webhooks",
    responses=responses(*_READ),
)
async def get_secret(resources: Res, principal: WebhooksWrite) -> TenantSecret:
    """Signs what goes to a URL that came with a job or batch. Needs the scope to write."""
    return await service.get_tenant_secret(resources, principal)


@router.post(
    "/webhook-secret/rotate",
    operation_id="webhook_secret.rotate",
    summary="Rotate the secret of jobs' own webhooks",
    responses=responses(*_READ),
)
async def rotate_tenant_secret(resources: Res, principal: WebhooksWrite) -> TenantSecret:
    """The old one signs beside the new one for 24 hours."""
    return await service.rotate_tenant_secret(resources, principal)


def _filter_id(prefix: Prefix, text: str | None, parameter: str) -> UUID | None:
    if text is None:
        return None
    try:
        return from_wire(prefix, text)
    except MalformedId:
        raise _bad_filter(parameter, f"This is not an id of the form {prefix}_….") from None


def _bad_filter(parameter: str, message: str) -> Problem:
    error = FieldError(pointer=None, parameter=parameter, code="malformed_id", message=message)
    return Problem("validation_failed", message, errors=[error])

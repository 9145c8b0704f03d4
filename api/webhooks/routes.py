"""HTTP of webhook endpoints, the tenant's webhook secret, and the delivery log."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response

from api.context import Res
from api.core.auth import require
from api.core.bodies import json_body
from api.core.errors import bad_parameter, problems
from api.core.principal import Principal
from api.core.serialization import AwareTime, Page, PageRequest, paging
from api.webhooks import delivery_log, service
from api.webhooks.schemas import (
    ENDPOINT_EXAMPLES,
    UPDATE_EXAMPLES,
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
from shared.core.ids import MalformedId, Prefix, decode_id

router = APIRouter(prefix="/v1", tags=["webhooks"])

WebhooksRead = Annotated[Principal, Depends(require("webhooks:read"))]
WebhooksWrite = Annotated[Principal, Depends(require("webhooks:write"))]
EndpointId = Annotated[str, Path(description="`whe_…`")]
DeliveryId = Annotated[str, Path(description="`whd_…`")]
Paging = Annotated[PageRequest, Depends(paging(20))]


@router.post(
    "/webhook-endpoints",
    operation_id="webhook_endpoints.create",
    summary="Register a webhook endpoint",
    status_code=201,
    responses={
        201: {
            "description": "Registered. The secret is shown this once.",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "The endpoint."}},
        }
    },
)
@problems("too_many_webhook_endpoints")
async def create_endpoint(
    resources: Res,
    principal: WebhooksWrite,
    creation: Annotated[EndpointCreation, Depends(json_body(EndpointCreation, ENDPOINT_EXAMPLES))],
    response: Response,
) -> EndpointWithSecret:
    """Events that happen from now on are sent to it as signed Standard Webhooks."""
    endpoint = await service.create(resources, principal, creation)
    response.headers["Location"] = endpoint.links.self
    return endpoint


@router.get(
    "/webhook-endpoints", operation_id="webhook_endpoints.list", summary="List webhook endpoints"
)
async def list_endpoints(resources: Res, principal: WebhooksRead, paging: Paging) -> Page[Endpoint]:
    """Newest first."""
    return await service.list_page(resources, principal, paging)


@router.get(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="webhook_endpoints.get",
    summary="Get a webhook endpoint",
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
)
async def update_endpoint(
    resources: Res,
    principal: WebhooksWrite,
    endpoint_id: EndpointId,
    update: Annotated[EndpointUpdate, Depends(json_body(EndpointUpdate, UPDATE_EXAMPLES))],
) -> Endpoint:
    """Fields that are left out stay. Disabling gives up the deliveries that wait for it."""
    return await service.update(resources, principal, endpoint_id, update)


@router.delete(
    "/webhook-endpoints/{endpoint_id}",
    operation_id="webhook_endpoints.delete",
    summary="Delete a webhook endpoint",
    status_code=204,
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
)
async def rotate_secret(
    resources: Res, principal: WebhooksWrite, endpoint_id: EndpointId
) -> EndpointWithSecret:
    """For 24 hours, requests are signed with both secrets."""
    return await service.rotate_secret(resources, principal, endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/test",
    operation_id="webhook_endpoints.test",
    summary="Send a test event",
    status_code=202,
)
async def test_endpoint(
    resources: Res, principal: WebhooksWrite, endpoint_id: EndpointId
) -> Delivery:
    """Sends `endpoint.test`, to a disabled endpoint too. GET the delivery to see how it went."""
    return await service.test(resources, principal, endpoint_id)


@router.post(
    "/webhook-endpoints/{endpoint_id}/redeliver",
    operation_id="webhook_endpoints.redeliver",
    summary="Redeliver what an endpoint has missed",
    status_code=202,
)
@problems("webhook_endpoint_disabled")
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
    return await delivery_log.redeliver_range(
        resources, principal, endpoint_id, since=since, until=until, states=states
    )


@router.get(
    "/webhook-deliveries", operation_id="webhook_deliveries.list", summary="List webhook deliveries"
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
    paging: Paging,
) -> Page[Delivery]:
    """Newest first, each with its attempts. The log is kept for 30 days."""
    if job_id is not None and batch_id is not None:
        message = "Filter by job or by batch, not by both."
        raise bad_parameter("batch_id", "malformed_id", message)
    filters = delivery_log.DeliveryFilters(
        endpoint_id=_filter_id("whe", endpoint_id, "endpoint_id"),
        resource_id=_filter_id("job", job_id, "job_id")
        or _filter_id("batch", batch_id, "batch_id"),
        states=tuple(state or ()),
        events=tuple(event or ()),
    )
    return await delivery_log.list_page(resources, principal, filters, paging)


@router.get(
    "/webhook-deliveries/{delivery_id}",
    operation_id="webhook_deliveries.get",
    summary="Get a webhook delivery",
)
async def get_delivery(
    resources: Res, principal: WebhooksRead, delivery_id: DeliveryId
) -> Delivery:
    """With its attempts: when, how long, which status or error, and the answer's beginning."""
    return await delivery_log.get(resources, principal, delivery_id)


@router.post(
    "/webhook-deliveries/{delivery_id}/redeliver",
    operation_id="webhook_deliveries.redeliver",
    summary="Redeliver a webhook",
    status_code=202,
)
@problems("webhook_endpoint_disabled")
async def redeliver(resources: Res, principal: WebhooksWrite, delivery_id: DeliveryId) -> Delivery:
    """At once, whatever its state, with the same `webhook-id`; the retry schedule restarts."""
    return await delivery_log.redeliver(resources, principal, delivery_id)


@router.get(
    "/webhook-secret",
    operation_id="webhook_secret.get",
    summary="Get the secret of jobs' own webhooks",
)
async def get_secret(resources: Res, principal: WebhooksWrite) -> TenantSecret:
    """Signs what goes to a URL that came with a job or batch. Needs the scope to write."""
    return await service.get_tenant_secret(resources, principal)


@router.post(
    "/webhook-secret/rotate",
    operation_id="webhook_secret.rotate",
    summary="Rotate the secret of jobs' own webhooks",
)
async def rotate_tenant_secret(resources: Res, principal: WebhooksWrite) -> TenantSecret:
    """For 24 hours, requests are signed with both secrets."""
    return await service.rotate_tenant_secret(resources, principal)


def _filter_id(prefix: Prefix, text: str | None, parameter: str) -> UUID | None:
    if text is None:
        return None
    try:
        return decode_id(prefix, text)
    except MalformedId:
        message = f"This is not an id of the form {prefix}_…."
        raise bad_parameter(parameter, "malformed_id", message) from None
